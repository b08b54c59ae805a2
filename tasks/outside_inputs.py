"""What a recipe brings along besides text: an existing tokenizer, a pretrained model, a model's code. Refused here, before any work, when
unsafe or unfit; and checked again where ranks read it.

Opens JSON and looks at names and first bytes; never loads weights, never runs code, never imports torch or transformers.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.storage import hash_file, looks_like_pickle, walk_files
from schemas.artifact import FileEntry
from schemas.config import RunConfig
from schemas.errors import InputError, UnsafeFileError, VerificationError
from tasks.factory_source import source_files

_ADAPTER = "adapter_config.json"


def check_tokenizer(config: RunConfig) -> int | None:
    """Returns how many ids an existing tokenizer has; None where one is trained.

    Refuses one that cannot be used, or whose ids the model cannot take; and a chat template that conversations cannot use.

    Raises:
        InputError: it is missing, cannot be loaded, or lacks `tokenizer.end_of_text`; or conversations have no chat template that can be used.
        UnsafeFileError: a pickle, or a link that leaves its folder.
        ConfigError: the model has fewer ids, or fewer positions than a sequence has tokens.
    """
    path = config.tokenizer.path
    if path is None:
        _check_template(config, {})
        return None
    from tasks.tokenizer.engine import facts_of
    from tasks.tokenizer.existing import read_existing
    from tasks.train.compatibility import check_compatibility

    existing = read_existing(Path(path), own_template=config.tokenizer.chat_template is not None)
    facts = facts_of(existing.tokenizer_json, end_of_text=config.tokenizer.end_of_text, subject=f"the tokenizer {path}")
    check_compatibility(config.model, vocab_size=facts.vocab_size, sequence_length=config.tokenization.sequence_length)
    _check_template(config, existing.config)
    return facts.vocab_size


def _check_template(config: RunConfig, existing: Mapping[str, Any]) -> None:
    """Refuses a chat template that is missing where there are conversations, or cannot be used. `existing`: the given `tokenizer_config.json`."""
    if not config.corpus.conversations:
        return
    from tasks.tokenize.conversation import ChatTemplate
    from tasks.tokenizer.folder import tokenizer_config

    tokenizer = config.tokenizer
    ChatTemplate.of_tokenizer(tokenizer_config(existing, end_of_text=tokenizer.end_of_text, chat_template=tokenizer.chat_template))


def check_pretrained(config: RunConfig) -> None:
    """Refuses a pretrained model that is not a plain folder of JSON and safetensors. Nothing to check without one.

    Raises:
        InputError: it is missing, holds no safetensors or no readable config.json, or is an adapter of a model that lies elsewhere.
        UnsafeFileError: a pickle (also a `.bin` of torch), or a symbolic link, anywhere in the folder.
    """
    if config.model.pretrained is None:
        return
    folder = Path(config.model.pretrained)
    if not folder.is_dir():
        raise InputError(f"model.pretrained: {str(folder)!r} is no folder", why="a pretrained model is a local folder in Hugging Face layout")
    names = set()
    for path in walk_files(folder):
        if looks_like_pickle(path):
            raise UnsafeFileError(f"{path} is a pickle", why="loading it could run code", mend="convert it to safetensors, or remove it")
        names.add(path.name)
    if _ADAPTER in names:
        why = f"{_ADAPTER} names a base model, which would be loaded from elsewhere, unseen"
        raise InputError(f"model.pretrained: {str(folder)!r} is an adapter", why=why, mend="merge it into its base model (peft: merge_and_unload)")
    if not any(name.endswith(".safetensors") for name in names):
        raise InputError(f"model.pretrained: {str(folder)!r} holds no *.safetensors", why="weights are read from safetensors only")
    try:
        values = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"model.pretrained: {str(folder / 'config.json')!r} cannot be read", why=str(error)) from error
    if not isinstance(values, dict):
        raise InputError(f"model.pretrained: {str(folder / 'config.json')!r} holds no JSON object", mend="save the model again")


def training_files(config: RunConfig, *, project_dir: Path | None) -> Mapping[str, Path]:
    """Returns what training reads from outside the store, by name: the files of a pretrained model, or the source of a factory.

    Args:
        project_dir: where a factory is looked for after everything else.

    Raises:
        InputError: the pretrained model cannot be used.
        UnsafeFileError: the pretrained model is, or holds, what could run code.
        ConfigError: the factory's source cannot be found.
    """
    if config.model.factory is not None:
        return source_files(config.model.factory, project_dir=project_dir)
    if config.model.pretrained is None:
        return {}
    check_pretrained(config)
    folder = Path(config.model.pretrained)
    return {path.relative_to(folder).as_posix(): path for path in walk_files(folder)}


def training_entries(config: RunConfig, *, project_dir: Path | None, hash_file: Callable[[Path], str]) -> tuple[FileEntry, ...]:
    """Returns the same files with their sizes and hashes. Errors are those of `training_files`, and InputError for one that cannot be read."""
    files = training_files(config, project_dir=project_dir)
    try:
        return tuple(FileEntry(path=name, size=path.stat().st_size, xxh3=hash_file(path)) for name, path in sorted(files.items()))
    except OSError as error:
        key = "model.factory" if config.model.factory is not None else "model.pretrained"
        raise InputError(f"{key}: {error.filename or 'a file'} cannot be read", why=str(error.strerror or error)) from error


def verify_training_files(config: RunConfig, entries: tuple[FileEntry, ...], *, project_dir: Path, part: int, num_parts: int) -> None:
    """Refuses a pretrained model or a factory's source that is not, on this node, what the training artifact's name stands for.

    Args:
        entries: every file as it was when the artifact was named.
        project_dir: as for `training_files`.
        part: which share of the files is hashed here; the ranks of a node share the work, so each file is read once per node.
        num_parts: shares there are.

    Raises:
        VerificationError: naming each file that is missing, added or changed. Else the errors of `training_files`.
    """
    found = training_files(config, project_dir=project_dir)
    known = {entry.path for entry in entries}
    findings = [f"{path}: was not there when this training was planned" for name, path in sorted(found.items()) if name not in known]
    findings += [f"{name}: missing" for name in sorted(known - found.keys())]
    for entry in entries[part::num_parts]:
        path = found.get(entry.path)
        if path is not None and (path.stat().st_size != entry.size or hash_file(path) != entry.xxh3):
            findings.append(f"{path}: its content is not what this training was planned with")
    if findings:
        subject = f"model.factory {config.model.factory}" if config.model.factory is not None else f"model.pretrained {config.model.pretrained}"
        mend = "headrace run starts anew with the files as they are, once every node sees the same"
        raise VerificationError(tuple(findings), subject=subject, mend=mend)
