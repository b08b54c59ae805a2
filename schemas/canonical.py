"""Canonical JSON and the hashes built on it. Equal values give equal bytes, in every process and on every machine."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from schemas.frozen import thaw

FINGERPRINT_CHARS = 12
"""Characters of a fingerprint that appear in folder names: 48 bits, enough to tell a project's artifacts apart."""


def canonical_json(value: Any) -> bytes:
    """Returns `value` as JSON bytes with sorted keys, no spaces, and no NaN.

    Raises:
        TypeError: for a value that has no stable form (a callable, a set, an object), because the hash
            must be identical across processes. Pass plain data.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else thaw(value)
    _refuse_unstable(plain, path="$")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256(data: bytes) -> str:
    """Returns the hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def hash_of(value: Any) -> str:
    """Returns the hex SHA-256 of the canonical JSON of `value`."""
    return sha256(canonical_json(value))


def fingerprint(*, stage: str, stage_version: int, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Returns what an artifact *is*: stage, its version, its recipe section, and the content hashes of its inputs (64 hex characters)."""
    return hash_of({"stage": stage, "stage_version": stage_version, "recipe": recipe, "inputs": inputs})


def root_hash(files: Iterable[tuple[str, int, str]]) -> str:
    """Returns one hash over (path, size in bytes, content hash) of a set of files, in any order."""
    return hash_of(sorted([path, size, digest] for path, size, digest in files))


def _refuse_unstable(value: Any, *, path: str) -> None:
    match value:
        case None | bool() | int() | str():
            return
        case float():
            if not math.isfinite(value):
                raise TypeError(f"{path}: {value!r} has no canonical form; use a finite number")
        case Mapping():
            for key, item in value.items():
                _refuse_unstable(item, path=f"{path}.{key}")
        case list() | tuple():
            for index, item in enumerate(value):
                _refuse_unstable(item, path=f"{path}[{index}]")
        case _:
            raise TypeError(f"{path}: {type(value).__name__} has no stable form, and a hash must be identical across processes; pass plain data")
