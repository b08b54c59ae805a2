"""Taking over an existing tokenizer: a `tokenizer.json`, or a folder in Hugging Face layout. Its bytes are kept as they are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.storage import PICKLE_SUFFIXES
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
    if path.is_dir():
        _refuse_pickles(path)
        return ExistingTokenizer(tokenizer_json=_read_json(path / TOKENIZER_NAME, folder=path), config=_parsed(path / CONFIG_NAME, folder=path))
    if path.name.endswith(PICKLE_SUFFIXES):
        raise UnsafeFileError(f"{path} looks like a pickle", why="loading it could run code", mend="give a tokenizer.json")
    return ExistingTokenizer(
        tokenizer_json=_read_json(path, folder=path.parent), config={}
    )  # files beside it were not named, and have no part in the identity


def _refuse_pickles(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.name.endswith(PICKLE_SUFFIXES):
            raise UnsafeFileError(
                f"{path} looks like a pickle", why="loading it could run code", mend="point tokenizer.path at the tokenizer.json itself"
            )


def _read_json(path: Path, *, folder: Path) -> bytes:
    if not path.exists():
        what = f"tokenizer.path: {path} does not exist"
        mend = "save the tokenizer with transformers' AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER), which writes a tokenizer.json"
        raise InputError(what, why="a tokenizer.json, or a folder that holds one, is needed", mend=mend)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UnsafeFileError(
            f"{path} is a link to {path.resolve()}", why="a link must not leave the tokenizer's folder", mend="copy the files: cp -rL"
        )
    if not path.is_file():
        raise UnsafeFileError(f"{path} is not a regular file", why="only regular files are read")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path} has {path.stat().st_size:,} bytes", why=f"a tokenizer has at most {_MAX_BYTES:,}", mend="check tokenizer.path")
    return path.read_bytes()


def _parsed(path: Path, *, folder: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content = _read_json(path, folder=folder)
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise InputError(f"{path} is not JSON", why=str(error), mend="save the tokenizer again, or remove the file") from error
    if not isinstance(parsed, dict):
        raise InputError(f"{path} holds no JSON object", mend="save the tokenizer again, or remove the file")
    return parsed
