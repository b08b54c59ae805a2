"""What can tell, without being read, that a recipe's outside inputs are what they were: texts, an existing tokenizer, a model.

Of every file that counts, and of every folder that was listed to find it, `stat` tells; of every link, where it leads. More is named here than the
stages look at, never less: a folder of which other files are chosen counts whole.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from schemas.config import RunConfig
from schemas.corpus_config import SourceConfig
from schemas.source_url import is_remote
from tasks.validate.sources import find_files, is_entered

_GLOB = re.compile(r"[*?\[]")


@dataclass
class Witnesses:
    """What to look at."""

    entries: set[str] = field(default_factory=set)
    """Files and folders, absolute: size, times and inode tell whether their content changed, and which names there are."""
    links: dict[str, str] = field(default_factory=dict)
    """Absolute path → where it really is: no link on the way to it may lead elsewhere."""


def witnesses_of(config: RunConfig) -> Witnesses | None:
    """Returns the witnesses of everything that `config` reads from outside the store; None when looking cannot tell.

    Raises:
        InputError: a source cannot be read.
        OSError: something went away meanwhile.
    """
    if config.model.factory is not None:  # found as an import finds it
        return None
    seen = Witnesses()
    for name, source in zip(config.corpus.source_names, config.corpus.sources, strict=True):
        if not _add_source(seen, source, name=name):
            return None
    for path in (config.tokenizer.path, config.model.pretrained, *config.corpus.preparation.decontamination.files):
        if path is not None:
            _add_path(seen, Path(path))
            seen.entries.update(entry.path for entry in _tree(seen, Path(path).resolve(), enter=lambda _: True))
    return seen


def _add_source(seen: Witnesses, source: SourceConfig, *, name: str) -> bool:
    """Adds a source's files, and the folders that are listed for them; False when they are remote, or links to folders leave doubt which they are."""
    if is_remote(source.path):  # only its server can tell
        return False
    files = find_files(source, name=name)
    seen.entries.update(str(file.path) for file in files)
    path = Path(source.path.removeprefix("file://"))
    if path.exists():
        _add_path(seen, path)
        list(_tree(seen, path.resolve(), enter=lambda relative: is_entered(relative, source)))
        return True
    fixed = path  # a glob: all folders below its fixed part, as it may list hidden ones as well
    while _GLOB.search(str(fixed)):
        fixed = fixed.parent
    _add_path(seen, fixed)
    most = len(path.parts) if "**" not in source.path else sys.maxsize
    depth = len(fixed.parts) + 1
    found = _tree(seen, fixed.resolve(), enter=lambda relative: depth + relative.count("/") < most)
    return not any(entry.is_symlink() and entry.is_dir() for entry in found)


def _add_path(seen: Witnesses, path: Path) -> None:
    """Adds something that the recipe names, and where it really is."""
    real = path.resolve()
    seen.links[str(path)] = str(real)
    seen.entries.add(str(real))


def _tree(seen: Witnesses, root: Path, *, enter: Callable[[str], bool]) -> "Iterator[os.DirEntry[str]]":
    """Adds a folder, those below it that `enter` wants by their relative path, and every link in them; yields all that is there.

    Links are not followed. A file is no tree.
    """
    waiting = [""] if root.is_dir() else []
    while waiting:
        inside = waiting.pop()
        place = str(root / inside)
        seen.entries.add(place)
        with os.scandir(place) as entries:
            for entry in entries:
                relative = f"{inside}/{entry.name}" if inside else entry.name
                if entry.is_symlink():
                    seen.links[entry.path] = os.path.realpath(entry.path)
                elif entry.is_dir() and enter(relative):
                    waiting.append(relative)
                yield entry
