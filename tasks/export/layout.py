"""How a Hugging Face model folder is laid out: which parameter goes into which file. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.export.safetensors_file import TensorSpec, TensorType

MODEL_FOLDER = "model"
CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
INDEX_NAME = "model.safetensors.index.json"
MAX_FILE_BYTES = 1_000_000_000
"""Weights per file: small enough to copy and retry, large enough that a 70 B model has some 140 files."""


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file and its tensors, in order."""

    name: str
    tensors: tuple[TensorSpec, ...]


def plan_files(tensors: Sequence[TensorSpec], *, dtype: TensorType, max_file_bytes: int = MAX_FILE_BYTES) -> tuple[WeightFile, ...]:
    """Returns the files of a model, tensors in the given order; a tensor above `max_file_bytes` gets a file of its own.

    One file is `model.safetensors`; several are `model-00001-of-0000N.safetensors`, as transformers names them.
    """
    chunks: list[list[TensorSpec]] = [[]]
    used = 0
    for tensor in tensors:
        size = tensor.num_elements * dtype.itemsize
        if chunks[-1] and used + size > max_file_bytes:
            chunks.append([])
            used = 0
        chunks[-1].append(tensor)
        used += size
    count = len(chunks)
    names = ["model.safetensors"] if count == 1 else [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]
    return tuple(WeightFile(name, tuple(chunk)) for name, chunk in zip(names, chunks, strict=True))


def weight_index(files: Sequence[WeightFile], *, dtype: TensorType) -> dict[str, Any]:
    """Returns the content of `model.safetensors.index.json`, which tells a reader which file holds which tensor."""
    total = sum(tensor.num_elements for file in files for tensor in file.tensors)
    weight_map = {tensor.name: file.name for file in files for tensor in file.tensors}
    return {"metadata": {"total_parameters": total, "total_size": total * dtype.itemsize}, "weight_map": weight_map}


def generation_config(*, end_of_text_id: int) -> dict[str, Any]:
    """Returns `generation_config.json`: start from, stop at and pad with the end-of-text token; greedy unless asked otherwise."""
    return {"bos_token_id": end_of_text_id, "eos_token_id": end_of_text_id, "pad_token_id": end_of_text_id, "do_sample": False}
