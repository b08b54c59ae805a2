"""Whether a model can take the tokens: checked at plan time, on configurations alone. Imports neither torch nor transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.config import ModelConfig
from schemas.errors import ConfigError, InputError, Problem


def check_compatibility(model: ModelConfig, *, vocab_size: int, sequence_length: int) -> None:
    """Refuses a model that cannot take the tokens: fewer ids or fewer positions..

    Raises:
        ConfigError: naming both numbers.
    """
    if model.config is not None:
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
