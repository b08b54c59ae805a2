"""What identifies the files that the recipe names to compare training documents with. Imports nothing heavy: every plan asks."""

from collections.abc import Callable, Sequence
from pathlib import Path

from schemas.canonical import root_hash
from schemas.errors import InputError, UnsafeFileError
from schemas.source_url import is_glob

FILES_KEY = "corpus.preparation.decontamination.files"


def files_hash(files: Sequence[str], hash_of_file: Callable[[Path], str]) -> str:
    """Returns one hash over the files that the recipe names, in order, wherever they lie.

    Raises:
        InputError: some are missing, cannot be read, or are no regular files. All of them at once.
    """
    parts, problems = [], []
    for index, name in enumerate(files):
        path = Path(name)
        try:
            parts.append((f"{index:06d}{path.suffix}", path.stat().st_size, hash_of_file(path)))
        except OSError as error:
            hint = "; wildcards count in corpus.sources alone" if isinstance(error, FileNotFoundError) and is_glob(name) else ""
            problems.append(f"{path}: cannot be read: {error.strerror or error}{hint}")
        except UnsafeFileError as error:
            problems.append(f"{path}: is a folder" if path.is_dir() and not path.is_symlink() else error.what)
    if problems:
        raise unfit(problems, count=len(files))
    return root_hash(parts)


def unfit(problems: Sequence[str], *, count: int) -> InputError:
    """Returns the error that names files that cannot be compared with, a line each. `count`: of all files that the recipe names."""
    lines = "\n".join(f"    {problem}" for problem in problems)
    return InputError(
        f"{FILES_KEY}: {len(problems)} of {count} cannot be compared with\n{lines}",
        why="each must be a regular file: UTF-8 text, or JSON Lines where its name ends in .jsonl",
        mend=f"correct them, or {FILES_KEY}: of a folder its files are named one by one, of a link what it leads to",
    )
