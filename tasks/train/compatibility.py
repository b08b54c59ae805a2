"""Whether a model can take the tokens: checked at plan time, on configurations alone. Imports neither torch nor transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.config import RunConfig
from schemas.errors import ConfigError, InputError, Problem
from schemas.recipe_config import ModelConfig
from schemas.reference import resolve_secrets

ATTENTION_KEY = "attn_implementation"
ATTENTIONS = ("sdpa", "eager")
"""Both compute the same function. `sdpa` needs less memory and is faster on GPUs; `eager` is faster at short sequences on the CPU."""


def attention_of(model_config: Mapping[str, Any]) -> str:
    """Returns how a `model.config` wants attention computed: its `attn_implementation`, or `sdpa`.

    Raises:
        ConfigError: it wants something else.
    """
    wanted = model_config.get(ATTENTION_KEY, ATTENTIONS[0])
    if f"_{ATTENTION_KEY}" in model_config:
        value = repr(model_config[f"_{ATTENTION_KEY}"])
        raise ConfigError((Problem(f"model.config._{ATTENTION_KEY}", value, "is transformers' own field", nearest=ATTENTION_KEY),))
    if wanted not in ATTENTIONS:
        message = f"must be one of {', '.join(ATTENTIONS)}"
        raise ConfigError((Problem(f"model.config.{ATTENTION_KEY}", repr(wanted), message, nearest=ATTENTIONS[0]),))
    return str(wanted)


def check_compatibility(model: ModelConfig, *, vocab_size: int, sequence_length: int) -> None:
    """Refuses a model that cannot take the tokens: fewer ids or fewer positions.

    Raises:
        ConfigError: naming both numbers; or the attention of `model.config` is not one that training knows.
    """
    if model.config is not None:
        attention_of(model.config)
        given: Mapping[str, Any] = model.config
    elif model.pretrained is not None:
        given = _read_config(Path(model.pretrained))
    else:
        return
    key = "model.config" if model.config is not None else "model.pretrained: config.json"
    problems = []
    known, positions = given.get("vocab_size"), given.get("max_position_embeddings")
    if isinstance(known, int) and known < vocab_size:
        problems.append(Problem(f"{key}.vocab_size", repr(known), f"the tokenizer has {vocab_size} ids", nearest=f"{vocab_size}, or leave it out"))
    if isinstance(positions, int) and positions < sequence_length:
        message = f"the shards hold sequences of {sequence_length} tokens"
        problems.append(Problem(f"{key}.max_position_embeddings", repr(positions), message, nearest=str(sequence_length)))
    if problems:
        raise ConfigError(tuple(problems), source="the model does not fit the tokens")


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"model.pretrained: {str(folder / 'config.json')!r} cannot be read", why=str(error)) from error
    return values


def check_storage(config: RunConfig) -> None:
    """Refuses what has no effect on the storage of a training: where that is no folder, every node's checkpoints lie on a disk of its own first.

    Raises:
        ConfigError: naming the key.
    """
    if config.checkpoint.local_dir is not None and resolve_secrets(config.storage.root).startswith("s3://"):
        message = f"has no effect with {config.storage.root}: every checkpoint lies on the node's own disk first"
        raise ConfigError((Problem("checkpoint.local_dir", repr(config.checkpoint.local_dir), message, nearest="null"),))
