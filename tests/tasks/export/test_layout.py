"""Which parameter goes into which file."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.export.layout import plan_files, weight_index
from tasks.export.safetensors_file import TensorSpec, TensorType


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
def test_every_tensor_once_in_order_and_files_stay_small(sizes: list[int], max_file_bytes: int) -> None:
    tensors = [TensorSpec(f"t{number}", (size,)) for number, size in enumerate(sizes)]
    files = plan_files(tensors, dtype=TensorType.BF16, max_file_bytes=max_file_bytes)
    assert [tensor for file in files for tensor in file.tensors] == tensors
    for file in files:
        assert len(file.tensors) == 1 or sum(2 * tensor.num_elements for tensor in file.tensors) <= max_file_bytes
    assert set(weight_index(files, dtype=TensorType.BF16)["weight_map"]) == {tensor.name for tensor in tensors}


def test_names_are_those_of_transformers() -> None:
    tensors = [TensorSpec("a", (4,)), TensorSpec("b", (4,))]
    assert [file.name for file in plan_files(tensors, dtype=TensorType.FP32)] == ["model.safetensors"]
    names = [file.name for file in plan_files(tensors, dtype=TensorType.FP32, max_file_bytes=16)]
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
