"""What a recipe brings along besides text: an existing tokenizer, a pretrained model. Refused here, before any work, when unsafe or unfit.

Opens JSON and looks at names and first bytes; never loads weights, never imports torch or transformers.
"""

import json
from pathlib import Path

from cluster.storage import looks_like_pickle, walk_files
from schemas.config import RunConfig
from schemas.errors import InputError, UnsafeFileError

_ADAPTER = "adapter_config.json"


def check_tokenizer(config: RunConfig) -> None:
    """Refuses an existing tokenizer that cannot be used, or whose ids the model cannot take. Nothing to check when one is trained.

    Raises:
        InputError: it is missing, cannot be loaded, or lacks `tokenizer.end_of_text`.
        UnsafeFileError: a pickle, or a link that leaves its folder.
        ConfigError: the model has fewer ids, or fewer positions than a sequence has tokens.
    """
    path = config.tokenizer.path
    if path is None:
        return
    from tasks.tokenizer.engine import facts_of
    from tasks.tokenizer.existing import read_existing
    from tasks.train.compatibility import check_compatibility

    existing = read_existing(Path(path))
    facts = facts_of(existing.tokenizer_json, end_of_text=config.tokenizer.end_of_text, subject=f"the tokenizer {path}")
    check_compatibility(config.model, vocab_size=facts.vocab_size, sequence_length=config.tokenization.sequence_length)


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
