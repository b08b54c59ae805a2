"""The local files and folders that a recipe names as inputs: whether they can be what is wanted, by their paths alone."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.cluster_config import ClusterKind
from schemas.errors import Problem
from schemas.source_url import SOURCE_KEYS, URL, is_glob
from schemas.yaml_text import Location, dotted, map_text

_INPUT_KEYS = re.compile(r"corpus\.sources\.\d+(\.path)?|corpus\.preparation\.decontamination\.files\.\d+|tokenizer\.path|model\.pretrained")
_COMPARED_KEYS = re.compile(r"corpus\.preparation\.decontamination\.files\.\d+")


def input_problems(data: Mapping[str, Any]) -> list[Problem]:
    """Returns the local inputs that cannot be what is wanted. Other machines may see other files, so this is for `kind: local` only.

    Sources that hold nothing are told along with others: who makes the list of files looks at them otherwise, and would come too late.
    """
    cluster = data.get("cluster")
    if isinstance(cluster, Mapping) and cluster.get("kind") in (ClusterKind.SLURM, ClusterKind.KUBERNETES):
        return []
    inputs: dict[str, str] = {}

    def gather(text: str, location: Location) -> str:
        key = dotted(location)
        if _INPUT_KEYS.fullmatch(key) and text and not (URL.match(text) or "${" in text):
            inputs[key] = text
        return text

    map_text(dict(data), (), gather)
    wrong = {key: problem for key, text in inputs.items() if (problem := _input_problem(key, text)) is not None}
    sources = {key: text for key, text in inputs.items() if wrong and key not in wrong and SOURCE_KEYS.fullmatch(key)}
    wrong |= {key: Problem(key=key, value=repr(text), message="holds no file") for key, text in sources.items() if _is_empty(Path(text))}
    return [wrong[key] for key in inputs if key in wrong]


def _input_problem(key: str, text: str) -> Problem | None:
    """Returns what is wrong with one local input, by its own path alone."""
    path = Path(text)
    try:
        if path.exists():
            is_folder = _COMPARED_KEYS.fullmatch(key) and path.is_dir()
            return Problem(key=key, value=repr(text), message="is a folder: name the files in it, one by one") if is_folder else None
    except OSError as error:
        return Problem(key=key, value=repr(text), message=f"cannot be looked at: {error.strerror}")
    if not is_glob(text):
        message = "is a symbolic link that leads nowhere" if path.is_symlink() else "does not exist"
    elif SOURCE_KEYS.fullmatch(key):
        return None
    else:
        message = "does not exist; `*`, `?` and `[` are wildcards in corpus.sources alone: name each file"
    return Problem(key=key, value=repr(text), message=message, nearest=nearest_file(path))


def _is_empty(path: Path) -> bool:
    """Whether no file, not even a hidden one, lies below a folder, or matches a glob."""
    try:
        if path.exists():
            return path.is_dir() and not any(found.is_file() for found in path.rglob("*"))
        fixed = next(parent for parent in path.parents if not is_glob(str(parent)))
        return not any(found.is_file() for found in fixed.glob(str(path.relative_to(fixed))))
    except (OSError, ValueError):  # not readable, or no glob: told by who lists files
        return False


def nearest_file(path: Path) -> str:
    """Returns the existing file with a name close to the missing `path`'s, in the deepest folder of it that exists; or an empty string."""
    missing = path
    try:
        while not missing.parent.is_dir() and missing.parent != missing:
            missing = missing.parent
        close = difflib.get_close_matches(missing.name, os.listdir(missing.parent), n=5, cutoff=0.6)  # also links that lead nowhere, itself perhaps
        return next((str(near) for name in close if (near := missing.with_name(name)).exists()), "")
    except OSError:
        return ""
