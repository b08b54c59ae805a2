"""Taking over an existing tokenizer: a `tokenizer.json`, or a folder in Hugging Face layout. Its bytes are kept as they are."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.storage import looks_like_pickle
from schemas.canonical import root_hash
from schemas.errors import InputError, UnsafeFileError

TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
_MAX_BYTES = 512 << 20
"""Larger than any vocabulary known (Gemma's tokenizer.json has 34 MB)."""


@dataclass(frozen=True)
class ExistingTokenizer:
    """What was read of an existing tokenizer."""

    tokenizer_json: bytes
    """Content of `tokenizer.json`."""
    config: dict[str, Any]
    """Content of the folder's `tokenizer_config.json`; empty without one, and when a file was named."""


def read_existing(path: Path) -> ExistingTokenizer:
    """Reads a tokenizer that the user names by file or folder. Nothing but JSON is opened.

    Raises:
        InputError: there is no `tokenizer.json`, or a file is not JSON.
        UnsafeFileError: a pickle, a link that leaves the folder, or a special file.
    """
    tokenizer, *config = existing_files(path)
    return ExistingTokenizer(tokenizer_json=tokenizer.read_bytes(), config=_parsed(config[0]) if config else {})


def existing_files(path: Path) -> tuple[Path, ...]:
    """Returns the files that an existing tokenizer consists of, links resolved: what it is read from, and what its identity is hashed over.

    Files beside a `tokenizer.json` that is named itself have no part in it.

    Raises:
        InputError: there is no `tokenizer.json`.
        UnsafeFileError: a pickle, a link that leaves the folder, or a special file.
    """
    if path.is_dir():
        _refuse_pickles(path)
        config = path / CONFIG_NAME
        return (_checked(path / TOKENIZER_NAME), *([_checked(config)] if config.exists() else []))
    if looks_like_pickle(path):
        raise UnsafeFileError(f"{path} looks like a pickle", why="loading it could run code", mend="give a tokenizer.json")
    return (_checked(path),)


def existing_hash(path: Path, hash_file: Callable[[Path], str]) -> str:
    """Returns the content hash of an existing tokenizer: what its identity is. Errors are those of `existing_files`."""
    return root_hash((file.name, file.stat().st_size, hash_file(file)) for file in existing_files(path))


def _refuse_pickles(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if looks_like_pickle(path):
            raise UnsafeFileError(
                f"{path} looks like a pickle", why="loading it could run code", mend="point tokenizer.path at the tokenizer.json itself"
            )


def _checked(path: Path) -> Path:
    """Returns the regular file behind `path`, which must not leave its folder."""
    if not path.exists():
        what = f"tokenizer.path: {path} does not exist"
        mend = "save the tokenizer with transformers' AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER), which writes a tokenizer.json"
        raise InputError(what, why="a tokenizer.json, or a folder that holds one, is needed", mend=mend)
    real = path.resolve()
    if not real.is_relative_to(path.parent.resolve()):
        raise UnsafeFileError(f"{path} is a link to {real}", why="a link must not leave the tokenizer's folder", mend="copy the files: cp -rL")
    if not real.is_file():
        raise UnsafeFileError(f"{path} is not a regular file", why="only regular files are read")
    if real.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path} has {real.stat().st_size:,} bytes", why=f"a tokenizer has at most {_MAX_BYTES:,}", mend="check tokenizer.path")
    return real


def _parsed(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON", why=str(error), mend="save the tokenizer again, or remove the file") from error
    if not isinstance(parsed, dict):
        raise InputError(f"{path} holds no JSON object", mend="save the tokenizer again, or remove the file")
    return parsed
