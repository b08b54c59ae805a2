"""Whether a model can take the tokens: checked at plan time, on configurations alone. Imports neither torch nor transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.config import RunConfig
from schemas.errors import ConfigError, InputError, Problem
from schemas.recipe_config import ModelConfig
from schemas.reference import resolve_secrets
from schemas.stage import Stage

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
    """Refuses a training that the storage cannot carry: where that is no folder, every node's checkpoints lie on a disk of its own first.

    Raises:
        ConfigError: naming the keys.
    """
    if not resolve_secrets(config.storage.root).startswith("s3://"):
        return
    problems: list[Problem] = []
    if (nodes := max(shape.num_nodes for shape in config.gang_shapes)) > 1:
        message = f"training on {nodes} nodes needs a folder that they share as storage.root, not {config.storage.root}"
        own = config.cluster.stages.get(Stage.TRAIN)
        key = "cluster.stages.train.nodes" if own is not None and own.nodes is not None else "cluster.nodes"
        problems.append(Problem(key, repr(config.cluster.resources(Stage.TRAIN).nodes), message, nearest="1"))
    if config.checkpoint.local_dir is not None:
        message = f"has no effect with {config.storage.root}: every checkpoint lies on the node's own disk first"
        problems.append(Problem("checkpoint.local_dir", repr(config.checkpoint.local_dir), message, nearest="null"))
    if problems:
        raise ConfigError(tuple(problems))
