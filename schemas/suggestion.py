"""What a wrong key or value was probably meant to be."""

import difflib
import re
from collections.abc import Iterable
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from schemas.config import RunConfig
from schemas.yaml_text import Location, dotted

_FOREIGN_KEYS: dict[str, str] = {
    "lr": "training.optimizer.learning_rate",
    "batch_size": "training.global_batch_size",
    "train_batch_size": "training.global_batch_size",
    "per_device_train_batch_size": "training.micro_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gas": "training.global_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size",
    "max_steps": "training.steps",
    "num_steps": "training.steps",
    "num_train_epochs": "training.epochs",
    "max_grad_norm": "training.gradient_clipping",
    "grad_clip": "training.gradient_clipping",
    "gradient_checkpointing": "training.activation_checkpointing",
    "dtype": "training.precision",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "save_steps": "checkpoint.every_steps",
    "save_every": "checkpoint.every_steps",
    "logging_steps": "tracking.log_every_steps",
    "eval_steps": "tracking.validate_every_steps",
    "seq_len": "tokenization.sequence_length",
    "block_size": "tokenization.sequence_length",
    "max_length": "tokenization.sequence_length",
    "partition": "cluster.queue",
    "gpus": "cluster.gpus_per_node",
    "num_gpus": "cluster.gpus_per_node",
    "num_nodes": "cluster.nodes",
    "walltime": "cluster.time_limit",
    "max_runtime": "cluster.time_limit",
    "dataset": "corpus.sources",
    "data": "corpus.sources",
    "output_dir": "storage.root",
}
"""Words of other trainers and schedulers, and where Headrace keeps the same thing."""

_FOREIGN_VALUES: dict[str, str] = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "k8s": "kubernetes",
    "hf": "huggingface",
    "json": "jsonl",
    "txt": "text",
    "int": "integer",
    "str": "string",
    "float": "number",
    "bool": "boolean",
    "tokenise": "tokenize",
    "eval": "evaluate",
}
"""Other names of values."""

_MAGNITUDES = {"k": 1_000, "m": 1_000_000, "g": 1_000_000_000, "b": 1_000_000_000}
_UNITS = {
    "seconds": "s",
    "second": "s",
    "sec": "s",
    "minutes": "m",
    "minute": "m",
    "min": "m",
    "hours": "h",
    "hour": "h",
    "hr": "h",
    "days": "d",
    "day": "d",
}


def model_at(location: Location) -> type[BaseModel] | None:
    """Returns the model whose fields may stand at `location`, or None where there is none (a scalar, a free-form object)."""
    model: type[BaseModel] | None = RunConfig
    for part in location:
        if model is None:
            return None
        field = model.model_fields.get(str(part))
        if field is not None:
            model = _model_in(field.annotation)
        # else: a list position or a mapping's key, which stays at the item's model
    return model


@cache
def known_keys() -> tuple[str, ...]:
    """Returns every key of a recipe, dotted, lists and mappings by their first item (`corpus.sources.0.path`)."""
    return tuple(_keys_below(RunConfig, prefix=""))


@cache
def _unique_leaves() -> dict[str, str]:
    """Last part of a key → the key, where only one key ends so."""
    leaves = [key.rsplit(".", 1)[-1] for key in known_keys()]
    return {leaf: key for leaf, key in zip(leaves, known_keys(), strict=True) if leaves.count(leaf) == 1}


def nearest_key(location: Location) -> str:
    """Returns the valid key that `location` was probably meant to be, dotted; empty when nothing is near."""
    parent, wrong = location[:-1], str(location[-1])
    model = model_at(parent)
    siblings = tuple(model.model_fields) if model else ()
    plain = wrong.lower().replace("-", "_")
    if plain in siblings:
        return dotted((*parent, plain))
    by_leaf = _unique_leaves()
    if plain in by_leaf:
        return by_leaf[plain]
    if plain in _FOREIGN_KEYS and not difflib.get_close_matches(plain, siblings, n=1, cutoff=0.85):
        return _FOREIGN_KEYS[plain]
    close = difflib.get_close_matches(plain, siblings, n=1, cutoff=0.55)
    if close:
        return dotted((*parent, close[0]))
    within = [name for name in siblings if len(plain) > 2 and (plain in name or name in plain)]
    if within:
        return dotted((*parent, within[0]))
    far = difflib.get_close_matches(plain, by_leaf, n=1, cutoff=0.85)
    if far:
        return by_leaf[far[0]]
    return dotted((*parent, siblings[0])) if len(siblings) == 1 else ""


def nearest_choice(value: Any, choices: Iterable[Any]) -> str:
    """Returns the choice that `value` was probably meant to be; empty when nothing is near."""
    by_text = {str(choice): choice for choice in choices}
    text = str(value).strip().lower()
    numbers = [choice for choice in by_text.values() if isinstance(choice, int)]
    if numbers and isinstance(value, int | float):
        return str(min(numbers, key=lambda choice: abs(choice - value)))
    if _FOREIGN_VALUES.get(text) in by_text:
        return _FOREIGN_VALUES[text]
    close: list[str] = difflib.get_close_matches(text, by_text, n=1, cutoff=0.5)
    if close:
        return close[0]
    return next((choice for choice in by_text if choice and (text.startswith(choice) or choice.startswith(text))), "") if text else ""


def nearest_number(value: Any, *, whole: bool) -> str:
    """Returns the number that a wrongly typed `value` was probably meant to be (`'10k'` → 10000, `2.5` → 2); empty when there is none."""
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, int | float):
        return str(round(value)) if whole and abs(value) < 1e18 else ""
    match = re.fullmatch(r"([-+]?\d[\d_, ]*(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*([a-zA-Z%]*)", str(value).strip())
    if match is None:
        return ""
    number = float(re.sub(r"[_, ]", "", match[1]))
    unit = match[2].lower()
    if unit == "%":
        number /= 100
    number *= _MAGNITUDES.get(unit[:1], 1) if unit in {"k", "m", "g", "b", "kb", "mb", "gb"} else 1
    return str(round(number)) if whole else f"{number:g}"


def nearest_match(value: Any, pattern: str) -> str:
    """Returns a small change of `value` that matches `pattern`: other case, dashes for what is not allowed, known units; empty when none does."""
    text = str(value).strip()
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
    size = re.sub(r"(?i)\s*([KMGT])(?:i?B)?$", lambda match: match[1].upper(), text)
    span = re.sub(r"(?i)\s*([a-z]+)$", lambda match: _UNITS.get(match[1].lower(), match[1][0].lower()), text)
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", text)
    seconds = ""
    if clock:
        days, hours, minutes, rest = (int(part or 0) for part in clock.groups())
        total = ((days * 24 + hours) * 60 + minutes) * 60 + rest
        seconds = f"{total // 3600}h" if total % 3600 == 0 else f"{total // 60}m" if total % 60 == 0 else f"{total}s"
    hours_only = f"{text}h" if text.isdigit() else ""
    entry_point = re.sub(r"\.(\w+)$", r":\1", text) if "." in text and ":" not in text else ""
    return next(
        (word for word in (seconds, size, span, hours_only, entry_point, text.lower(), slug) if word and word != value and re.search(pattern, word)),
        "",
    )


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _model_in(inner)) is not None), None)


def _keys_below(model: type[BaseModel], *, prefix: str) -> Iterable[str]:
    for name, field in model.model_fields.items():
        below = _model_in(field.annotation)
        yield prefix + name
        if below is not None:
            item = "" if below is field.annotation else "0."
            if "Stage" in str(field.annotation):
                item = "train."
            yield from _keys_below(below, prefix=f"{prefix}{name}.{item}")
