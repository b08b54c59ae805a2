"""From fp32 master weights to the exported number format. Pure numpy: export needs no torch."""

import numpy as np
import numpy.typing as npt

from schemas.recipe_config import Precision
from tasks.export.safetensors_file import TensorType

_TYPES = {Precision.FP32: TensorType.FP32, Precision.BF16: TensorType.BF16, Precision.FP16: TensorType.FP16}
_TORCH_NAMES = {TensorType.FP32: "float32", TensorType.BF16: "bfloat16", TensorType.FP16: "float16"}


def export_type(precision: Precision) -> TensorType:
    """Returns the format of the exported weights: that of the training's forward pass, so the model computes as it was trained."""
    return _TYPES[precision]


def torch_name(dtype: TensorType) -> str:
    """Returns how a transformers config spells the format."""
    return _TORCH_NAMES[dtype]


def cast(values: npt.NDArray[np.float32], *, dtype: TensorType) -> npt.NDArray[np.generic]:
    """Returns fp32 `values` as `dtype`, rounded to nearest, ties to even; bf16 as raw uint16.

    Values beyond fp16's range become infinite: callers check `num_not_finite`.
    """
    match dtype:
        case TensorType.FP32:
            return values
        case TensorType.FP16:
            with np.errstate(over="ignore"):
                return values.astype(np.float16)
        case TensorType.BF16:
            return _bf16(values)


def _bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """bf16 is fp32's upper half: add half of the last kept bit, less one when that bit is even, and cut. NaN stays a quiet NaN."""
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    halves = (rounded >> np.uint32(16)).astype(np.uint16)
    is_nan = np.isnan(values)
    if is_nan.any():
        halves[is_nan] = 0x7FC0
    return halves


def num_not_finite(values: npt.NDArray[np.generic], *, dtype: TensorType) -> int:
    """Returns how many of the values, as returned by `cast`, are infinite or NaN."""
    if dtype is TensorType.BF16:
        exponent = values.view(np.uint16) & np.uint16(0x7F80)
        return int(np.count_nonzero(exponent == np.uint16(0x7F80)))
    return int(values.size - np.count_nonzero(np.isfinite(values)))
