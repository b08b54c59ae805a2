"""The cast to the exported number format is torch's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.recipe_config import Precision
from tasks.export.number_format import cast, export_type, num_not_finite
from tasks.export.safetensors_file import TensorSpec, TensorType, header_of


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
def test_bf16_equals_torch_for_any_bits(bits: list[int]) -> None:
    import torch

    values = np.array(bits, dtype=np.uint32).view(np.float32)
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16)
    found = torch.from_numpy(np.asarray(cast(values, dtype=TensorType.BF16)).view(np.int16).copy()).view(torch.bfloat16)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(0.0).view(torch.int16), expected.nan_to_num(0.0).view(torch.int16))


@pytest.mark.parametrize("precision", list(Precision))
def test_not_finite_values_are_counted(precision: Precision) -> None:
    dtype = export_type(precision)
    values = np.array([0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-40], dtype=np.float32)
    assert num_not_finite(cast(values, dtype=dtype), dtype=dtype) == 3


def test_header_is_what_the_library_writes() -> None:
    from safetensors.numpy import load, save

    tensors = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.array(3.0, dtype=np.float32)}
    own = header_of([TensorSpec(name, values.shape) for name, values in tensors.items()], dtype=TensorType.FP32)
    assert len(own) % 8 == 0
    loaded = load(own + b"".join(values.tobytes() for values in tensors.values()))
    assert {name: values.tolist() for name, values in loaded.items()} == {name: values.tolist() for name, values in load(save(tensors)).items()}
