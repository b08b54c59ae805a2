"""Paths that come out of files: relative, below their folder, nothing else. Checked where a record, a manifest or a commit is parsed."""

from typing import Annotated

from pydantic import AfterValidator


def is_below(path: str) -> bool:
    """Whether a path with `/` stays below the folder it is relative to, by name alone: no `..`, no empty part, no back-slash, no NUL."""
    return not (path.startswith("/") or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")))


def _checked(path: str) -> str:
    if not is_below(path):
        raise ValueError(f"the path {path!r} does not stay below its folder")
    return path


RelativePath = Annotated[str, AfterValidator(_checked)]
"""A path with `/` that stays below the folder it is relative to."""
