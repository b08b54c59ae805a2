"""What identifies the files that the recipe names to compare training documents with. Imports nothing heavy: every plan asks."""

from collections.abc import Callable, Sequence
from pathlib import Path

from schemas.canonical import root_hash
from schemas.errors import InputError

FILES_KEY = "corpus.preparation.decontamination.files"


def files_hash(files: Sequence[str], hash_of_file: Callable[[Path], str]) -> str:
    """Returns one hash over the files that the recipe names, in order, wherever they lie.

    Raises:
        InputError: one is missing or cannot be read.
    """
    parts = []
    for index, name in enumerate(files):
        path = Path(name)
        try:
            parts.append((f"{index:06d}{path.suffix}", path.stat().st_size, hash_of_file(path)))
        except OSError as error:
            raise InputError(f"{path}: cannot be read", why=str(error.strerror or error), mend=f"correct {FILES_KEY}") from error
    return root_hash(parts)
