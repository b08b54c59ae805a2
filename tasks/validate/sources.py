"""From `corpus.sources` to the list of raw files, with their hashes.

Reads no content itself and imports nothing heavy: `plan` runs it in milliseconds.
"""

import fnmatch
import os
import stat
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.remote_files import RemoteFile
from schemas.config import RunConfig
from schemas.corpus_config import SourceConfig
from schemas.errors import InputError, MissingTextError
from schemas.manifest import InputFile
from schemas.source_url import is_glob, is_remote
from tasks.file_hashes import Hashes
from tasks.validate.remote_sources import find_all_remote

Format = Literal["jsonl", "parquet", "csv", "text"]
Compression = Literal["none", "gzip", "zstd"]

_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class FoundFile:
    """A raw file before it is hashed."""

    path: Path
    """Absolute, without symbolic links."""
    relative_path: str
    """Path within the source, with `/`."""


def plan_inputs(config: RunConfig, hashes: Hashes | None) -> tuple[InputFile, ...]:
    """Returns every raw file of the corpus, in order of (source, relative path), with size and hash.

    Args:
        hashes: of files; a cache is welcome here, because the scan hashes the very bytes it parses again. None: sizes alone are wanted.

    Raises:
        MissingTextError: sources do not exist, or match nothing.
        InputError: a source holds links that leave it, or cannot be read. All problems of all sources at once; then the first file that cannot be
            hashed.
        UnreachableError: the server of a source refuses, or does not answer.
    """
    listed = _listed(config)
    if hashes is None:
        digests = [""] * len(listed)
    else:
        try:
            digests = hashes.hash_all([item.file for item in listed])
        except OSError as error:
            item = next((item for item in listed if error.filename is not None and item.path == str(error.filename)), None)
            if item is None:  # of the storage or the terminal that is told how far it is
                raise
            raise _unreadable(error, source=item.source, subject=item.path) from error
    return tuple(
        InputFile(source=item.source, path=item.path, relative_path=item.relative_path, size=item.size, xxh3=digest)
        for item, digest in zip(listed, digests, strict=True)
    )


@dataclass(frozen=True)
class _Listed:
    """A raw file of any source before it is hashed."""

    source: str
    file: Path | RemoteFile
    relative_path: str
    size: int

    @property
    def path(self) -> str:
        """Absolute path or URL."""
        return self.file.url if isinstance(self.file, RemoteFile) else str(self.file)


def _listed(config: RunConfig) -> list[_Listed]:
    """Returns the files of all sources. Raises as `plan_inputs`."""
    listed, remote, problems = list[_Listed](), dict[str, dict[str, RemoteFile]](), list[InputError]()
    try:
        remote = find_all_remote(config, is_selected=is_selected)
    except InputError as error:
        problems.append(error)
    for name, source in zip(config.corpus.source_names, config.corpus.sources, strict=True):
        if is_remote(source.path):
            listed += [_Listed(name, file, relative, file.size) for relative, file in remote.get(name, {}).items()]
            continue
        try:
            listed += [_Listed(name, found.path, found.relative_path, found.path.stat().st_size) for found in find_files(source, name=name)]
        except InputError as error:
            problems.append(error)
        except OSError as error:
            problems.append(_unreadable(error, source=name, subject=source.path))
    if problems:
        raise _all_of(problems)
    return listed


def _all_of(problems: list[InputError]) -> InputError:
    """Returns all problems as one. Missing text alone stays that: elsewhere it may be there."""
    if len(problems) == 1:
        return problems[0]
    what = "\n".join(["corpus.sources: not all can be read", *(textwrap.indent(problem.what, "    ") for problem in problems)])
    why, mend = ("; ".join(dict.fromkeys(filter(None, texts))) for texts in zip(*((problem.why, problem.mend) for problem in problems), strict=True))
    kind = MissingTextError if all(isinstance(problem, MissingTextError) for problem in problems) else InputError
    return kind(what, why=why, mend=mend)


def _unreadable(error: OSError, *, source: str, subject: str) -> InputError:
    what = f"source {source!r}: {error.filename or subject}: cannot be read"
    return InputError(what, why=error.strerror or str(error), mend="make it readable, or leave it out with `exclude`")


def find_files(source: SourceConfig, *, name: str) -> tuple[FoundFile, ...]:
    """Returns the files of one source on this machine, sorted by relative path. Names that begin with a dot are left out, as a shell's `*` does.

    Raises:
        MissingTextError: nothing is there.
        InputError: something is there that Headrace refuses to read.
    """
    path = _local_path(source.path, name=name)
    if is_glob(source.path) and not path.exists():
        root = Path(*_fixed_part(path))
        names = _matches(path, root=root, name=name)
    elif path.is_dir():
        root = path
        names = [relative for relative in _walk(root, source) if is_selected(relative, source)]
    elif path.exists():
        return _checked([(_real(path), path.name)], root=_real(path).parent, name=name)
    else:
        raise MissingTextError(
            f"source {name!r}: {source.path!r} does not exist",
            why="a source is a file, a glob or a folder",
            mend=f"correct corpus.sources[].path; nearest folder that exists: {_nearest(path)}",
        )
    if not names:
        raise MissingTextError(
            f"source {name!r}: {source.path!r} holds no file to read",
            why=f"nothing matches include {list(source.include)}, exclude {list(source.exclude)}; names that begin with a dot do not count",
            mend="correct corpus.sources[].path, include or exclude",
        )
    root = _real(root)
    return _checked([(root / relative, relative) for relative in sorted(names)], root=root, name=name)


def format_of(path: str, source: SourceConfig) -> Format:
    """Returns how a file is read: the source's `format`, or by the ending (a compression's ending does not count)."""
    if source.format != "auto":
        return source.format
    return _FORMATS.get(Path(_without_compression(path)).suffix.lower(), "text")


def format_doubts(config: RunConfig, inputs: Iterable[InputFile]) -> tuple[str, ...]:
    """Returns, for people, the sources that are read as plain text although all of their files look like data: by their endings alone."""
    endings: dict[str, Counter[str]] = {}
    for file in inputs:
        endings.setdefault(file.source, Counter())[Path(_without_compression(file.relative_path)).suffix.lower()] += 1
    doubts = []
    for name, source in zip(config.corpus.source_names, config.corpus.sources, strict=True):
        found = endings.get(name, Counter())
        if source.format == "auto" and set(found) == {".json"}:
            doubts.append(
                f"source {name!r}: all of its files ({found['.json']:,}) end in .json and are read as plain text, a document each; "
                "where a line is a record, say corpus.sources[].format: jsonl"
            )
    return tuple(doubts)


def compression_of(path: str) -> Compression:
    """Returns how a file is compressed, by its ending."""
    return _COMPRESSIONS.get(Path(path).suffix.lower(), "none")


def delimiter_of(path: str) -> str:
    """Returns the delimiter of a CSV file: a tab for `.tsv`, else a comma."""
    return "\t" if Path(_without_compression(path)).suffix.lower() == ".tsv" else ","


def _without_compression(path: str) -> str:
    return path if compression_of(path) == "none" else str(Path(path).with_suffix(""))


def _local_path(path: str, *, name: str) -> Path:
    """Returns the path of a source on this machine. Raises InputError for URLs of other kinds."""
    if is_remote(path):
        raise InputError(f"{name}: a URL is not on this machine", mend="name a folder with some of the text here, then the URL in corpus.sources")
    return Path(path.removeprefix("file://")).absolute()


def _fixed_part(pattern: Path) -> tuple[str, ...]:
    """Returns the leading parts of a glob that hold no wildcard."""
    parts: list[str] = []
    for part in pattern.parts[:-1]:
        if is_glob(part):
            break
        parts.append(part)
    return tuple(parts)


def _matches(pattern: Path, *, root: Path, name: str) -> list[str]:
    """Returns the files below `root` that a glob matches, relative to it. `**` crosses folders, `*` does not. InputError: it is no glob."""
    if any("**" in part and part != "**" for part in pattern.parts):
        raise InputError(
            f"source {name!r}: {str(pattern)!r} is no glob",
            why="`**` stands for any folders, and is a part of a path by itself",
            mend="write `**/*.jsonl` for files in any folder, `*.jsonl` for those in one",
        )
    if not root.is_dir():
        return []
    relative_pattern = pattern.relative_to(root).as_posix()
    found = (path.relative_to(root) for path in root.glob(relative_pattern) if not path.is_dir())
    return sorted({path.as_posix() for path in found if not _is_hidden(path)})


def is_entered(folder: str, source: SourceConfig) -> bool:
    """Whether a folder of a source, relative to it, is looked into: not a hidden one, nor one below which `exclude` leaves out everything."""
    hidden = folder.rpartition("/")[2].startswith(".")
    return not hidden and not any(pattern.endswith("/*") and fnmatch.fnmatchcase(folder, pattern[:-2]) for pattern in source.exclude)


def _walk(root: Path, source: SourceConfig) -> Iterator[str]:
    """Yields the files of all entered folders, relative to `root`. Linked folders are not: inside the source their files come up anyway, unless
    they are hidden.
    """
    real = _real(root)
    for folder, folders, files in os.walk(root, onerror=_raise, followlinks=False):
        inside = Path(folder).relative_to(root)
        linked = [child for child in folders if Path(folder, child).is_symlink()]
        folders[:] = sorted(child for child in folders if child not in linked and is_entered((inside / child).as_posix(), source))
        for child in linked:
            target = _real(Path(folder, child))
            if not target.is_relative_to(real) or _is_hidden(target.relative_to(real)):
                files.append(child)  # refused later, with the other links
        for child in files:
            if not child.startswith("."):
                yield (inside / child).as_posix()


def _raise(error: OSError) -> None:
    """Makes `os.walk` report a folder that cannot be listed, which it leaves out silently by default."""
    raise error


def is_selected(relative: str, source: SourceConfig) -> bool:
    """Whether a folder's file, by its relative path, is to be read. `*` in patterns crosses folders."""
    return any(fnmatch.fnmatchcase(relative, pattern) for pattern in source.include) and not any(
        fnmatch.fnmatchcase(relative, pattern) for pattern in source.exclude
    )


def _checked(files: list[tuple[Path, str]], *, root: Path, name: str) -> tuple[FoundFile, ...]:
    """Returns the files with links resolved.

    Raises:
        InputError: some lead out of `root`, are broken links or no regular files, or have names that cannot be stored.
    """
    found, problems = [], []
    for path, relative in files:
        resolved = _real(path)
        if problem := _problem_of(path, resolved=resolved, relative=relative, root=root):
            problems.append(problem)
        else:
            found.append(FoundFile(path=resolved, relative_path=relative))
    if problems:
        more = [f"… and {len(problems) - _SHOWN_PROBLEMS} more"] if len(problems) > _SHOWN_PROBLEMS else []
        lines = "\n".join(f"    {problem}" for problem in [*problems[:_SHOWN_PROBLEMS], *more])
        raise InputError(
            f"source {name!r}: {len(problems)} of {len(files)} files are refused\n{lines}",
            why="only regular files inside the source are read: a link could lead anywhere",
            mend="replace links by the files themselves, or leave out with `exclude` what is refused",
        )
    return tuple(found)


def _problem_of(path: Path, *, resolved: Path, relative: str, root: Path) -> str:
    """Returns what forbids reading a file, or an empty text."""
    try:
        relative.encode()
    except UnicodeEncodeError:
        return f"{relative!r}: the name is not valid UTF-8"
    if not resolved.is_relative_to(root):
        return f"{path} -> {resolved}: a symbolic link that leaves the source"
    try:
        mode = resolved.stat().st_mode
    except OSError as error:
        return f"{path}: {error.strerror}"
    if stat.S_ISDIR(mode):
        return f"{path} -> {resolved}: a symbolic link to a hidden folder, which is not looked into"
    return "" if stat.S_ISREG(mode) else f"{path}: not a regular file"


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _real(path: Path) -> Path:
    """Returns the path without symbolic links, as far as they lead: of a loop `stat` tells, where `Path.resolve` raises RuntimeError."""
    return Path(os.path.realpath(path))


def _nearest(path: Path) -> str:
    """Returns the nearest parent that exists."""
    return next((str(parent) for parent in path.parents if parent.exists()), "/")
