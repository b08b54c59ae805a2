"""Files lie behind one another in one range of addresses, which is given back."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from tasks.tokenize.mapped_region import MappedRegion


def file_of(path: Path, content: bytes) -> int:
    path.write_bytes(content)
    return os.open(path, os.O_RDONLY)


def addresses_in_use() -> int:
    """Pages of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0])


def test_files_are_found_at_their_places_in_any_order_of_mapping(tmp_path: Path) -> None:
    contents = [b"water" * 1000, b"w", b"wheel" * 3000]
    region = MappedRegion([len(content) for content in contents])
    for position in (2, 0, 1):
        descriptor = file_of(tmp_path / f"{position}", contents[position])
        found = region.map(position, descriptor)
        os.close(descriptor)
        assert found.tobytes() == contents[position]
    for position, begin in enumerate(region.begins):
        assert region.content[begin : begin + len(contents[position])].tobytes() == contents[position]
    every_fifth = np.ndarray((region.content.size - 4,), "V5", region.content, strides=(1,))[region.begins[[0, 2]] + 5]
    assert every_fifth.tobytes() == b"waterwheel"


def test_a_place_can_be_used_again(tmp_path: Path) -> None:
    region = MappedRegion([5, 5])
    for content in (b"first", b"other"):
        descriptor = file_of(tmp_path / content.decode(), content)
        assert region.map(1, descriptor).tobytes() == content
        os.close(descriptor)
        region.unmap(1)


def test_addresses_are_given_back_and_more_than_there_are_is_an_error() -> None:
    before = addresses_in_use()
    region = MappedRegion([1 << 40])
    assert addresses_in_use() - before >= 1 << 28
    del region
    gc.collect()
    assert addresses_in_use() - before < 1 << 27
    with pytest.raises(OSError, match="memory"):
        MappedRegion([1 << 50])
