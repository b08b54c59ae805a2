"""From a source behind a URL to its files: which they are, and what they are called, as if the same files lay in a folder here."""

import fnmatch
from collections.abc import Callable, Sequence

from cluster.remote_files import RemoteFile, RemoteFiles
from schemas.config import RunConfig
from schemas.corpus_config import SourceConfig
from schemas.errors import InputError
from schemas.source_url import is_glob, is_remote, name_of, url_problem

_SHOWN = 20

Selects = Callable[[str, SourceConfig], bool]
"""Tells whether a folder's file is to be read, by its relative path."""


def find_all_remote(config: RunConfig, *, is_selected: Selects) -> dict[str, dict[str, RemoteFile]]:
    """Returns the files of all remote sources, by source and relative path. Raises as `find_remote`; InputError with all problems at once."""
    remote, found, problems = RemoteFiles(), dict[str, dict[str, RemoteFile]](), list[InputError]()
    for name, source in zip(config.corpus.source_names, config.corpus.sources, strict=True):
        if is_remote(source.path):
            try:
                found[name] = find_remote(source, name=name, remote=remote, is_selected=is_selected)
            except InputError as error:
                problems.append(error)
    if len(problems) > 1:
        lines = [f"    {line}" for problem in problems for line in filter(None, (problem.what, problem.why and f"  {problem.why}"))]
        mend = "; ".join(dict.fromkeys(problem.mend for problem in problems if problem.mend))
        raise InputError("\n".join([f"{len(problems)} sources cannot be read", *lines]), mend=mend)
    if problems:
        raise problems[0]
    return found


def find_remote(source: SourceConfig, *, name: str, remote: RemoteFiles, is_selected: Selects) -> dict[str, RemoteFile]:
    """Returns a source's files by their relative paths, sorted. Names that begin with a dot are left out.

    Args:
        source: its path is a URL: of a file, else a glob or a folder.
        name: its name.
        remote: asks servers.
        is_selected: chooses among a folder's files.

    Raises:
        InputError: nothing is there, the URL is refused, or names cannot be those of files.
        UnreachableError: the server refuses, or does not answer.
    """
    url = source.path
    if problem := url_problem(url):
        raise InputError(f"source {name!r}: its URL {problem}", mend="correct corpus.sources[].path")
    single = None if url.endswith("/") else remote.find(url)
    if single is not None:
        return {name_of(url): single}
    if is_glob(url):
        root, pattern = _fixed_part(url)
        files = _below(root, name=name, remote=remote)
        found = {path: file for path, file in files.items() if _matches(path.split("/"), pattern)}
    else:
        files = _below(url, name=name, remote=remote)
        found = {path: file for path, file in files.items() if is_selected(path, source)}
    if not found:
        raise InputError(
            f"source {name!r}: {url!r} holds no file to read",
            why=f"{len(files):,} files are there, and none matches" if files else "there is no such file, and none below it",
            mend="correct corpus.sources[].path, include or exclude; names that begin with a dot do not count",
        )
    return dict(sorted(found.items()))


def _fixed_part(url: str) -> tuple[str, Sequence[str]]:
    """Returns the folder above the first wildcard of a glob, and the parts of the pattern below it."""
    scheme, _, rest = url.partition("://")
    parts = rest.split("/")
    first = next(index for index, part in enumerate(parts) if is_glob(part))
    return f"{scheme}://{'/'.join(parts[:first])}", parts[first:]


def _below(folder: str, *, name: str, remote: RemoteFiles) -> dict[str, RemoteFile]:
    """Returns the files below a folder that are not hidden, by relative path. Raises InputError, naming every name that no file could have."""
    root = f"{folder.rstrip('/')}/"
    files = {file.url[len(root) :]: file for file in remote.below(folder)}
    refused = [path for path in sorted(files) if not all(path.split("/")) or "\0" in path]
    if refused:
        lines = [f"    {root}{path}" for path in refused[:_SHOWN]] + ([f"    … and {len(refused) - _SHOWN} more"] if len(refused) > _SHOWN else [])
        why = "a name with an empty part is no file's, so the same text could not lie in a folder"
        raise InputError("\n".join([f"source {name!r}: {len(refused)} of {len(files)} files are refused", *lines]), why=why, mend="rename them")
    return {path: file for path, file in files.items() if not any(part.startswith(".") for part in path.split("/"))}


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a relative path fits a glob, as `Path.glob` has it: `**` stands for any folders, `*` does not cross them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return len(pattern) > 1 and any(_matches(parts[skipped:], pattern[1:]) for skipped in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
