"""Taking over an existing tokenizer: a `tokenizer.json`, or a folder in Hugging Face layout. Its bytes are kept as they are."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.storage import looks_like_pickle
from schemas.canonical import root_hash
from schemas.errors import InputError, UnsafeFileError

TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
_MAX_BYTES = 512 << 20
"""Larger than any vocabulary known (Gemma's tokenizer.json has 34 MB)."""


@dataclass(frozen=True)
class ExistingTokenizer:
    """What was read of an existing tokenizer."""

    tokenizer_json: bytes
    """Content of `tokenizer.json`."""
    config: dict[str, Any]
    """Content of the folder's `tokenizer_config.json`, with the template of a `chat_template.jinja`; empty without both, or when a file was named."""


def read_existing(path: Path, *, own_template: bool = False) -> ExistingTokenizer:
    """Reads a tokenizer that the user names by file or folder. Nothing but JSON and the chat template is opened, and nothing of it is run.

    Args:
        path: the file or folder.
        own_template: the recipe has a chat template of its own, so those of the folder do not matter.

    Raises:
        InputError: there is no `tokenizer.json`, a file cannot be read or is not what its name says, or there are two chat templates that
            differ.
        UnsafeFileError: a pickle, a link that leaves the folder, or a special file.
    """
    parts = _parts(path)
    config = _parsed(parts[CONFIG_NAME]) if CONFIG_NAME in parts else {}
    if TEMPLATE_NAME in parts and not own_template:
        config["chat_template"] = _template(path / TEMPLATE_NAME, stored=config.get("chat_template"))
    return ExistingTokenizer(tokenizer_json=parts[TOKENIZER_NAME].read_bytes(), config=config)


def existing_files(path: Path) -> tuple[Path, ...]:
    """Returns the files that an existing tokenizer consists of, links resolved: what it is read from, and what its identity is hashed over.

    Files beside a `tokenizer.json` that is named itself have no part in it.

    Raises:
        InputError: there is no `tokenizer.json`.
        UnsafeFileError: a pickle, a link that leaves the folder, or a special file.
    """
    return tuple(_parts(path).values())


def existing_hash(path: Path, hash_file: Callable[[Path], str]) -> str:
    """Returns the content hash of an existing tokenizer: what its identity is. Errors are those of `existing_files`."""
    return root_hash((file.name, file.stat().st_size, hash_file(file)) for file in existing_files(path))


def _parts(path: Path) -> dict[str, Path]:
    """Returns the same files by what they are: the names that they have in a folder in Hugging Face layout."""
    if path.is_dir():
        _refuse_pickles(path)
        optional = [name for name in (CONFIG_NAME, TEMPLATE_NAME) if (path / name).exists()]
        return {name: _checked(path / name) for name in (TOKENIZER_NAME, *optional)}
    if looks_like_pickle(path):
        raise UnsafeFileError(f"{path} looks like a pickle", why="loading it could run code", mend="give a tokenizer.json")
    return {TOKENIZER_NAME: _checked(path)}


def _template(path: Path, *, stored: Any) -> Any:
    """Returns the chat template of a folder that has it in a file of its own, as transformers writes it, and perhaps in the configuration as well.

    Args:
        path: the file.
        stored: what `tokenizer_config.json` has: a template, named ones, or None.
    """
    try:
        template = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8", why=str(error), mend="save the tokenizer again, or remove the file") from error
    named = (
        {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)} if isinstance(stored, list) else {"default": stored}
    )
    default = named.get("default")
    if default is None:
        return template
    if not isinstance(default, str) or default.removesuffix("\n") != template.removesuffix("\n"):  # Jinja ignores a last line break
        raise InputError(
            f"{path} and the chat_template of {path.with_name(CONFIG_NAME)} differ",
            why="which of them the model is meant to speak cannot be told; transformers takes the file, its older releases the other",
            mend="remove one of the two, or give the template in tokenizer.chat_template",
        )
    return stored


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
    if not os.access(real, os.R_OK):
        raise InputError(f"{path} cannot be read", why="this user may not read it", mend="make it readable, or correct tokenizer.path")
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
