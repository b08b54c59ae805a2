"""A store of one's own for every test."""

from pathlib import Path

import pytest

from cluster.storage import FileStorage
from tests.fakes.stored_chain import StoredChain


@pytest.fixture
def chain(tmp_path: Path) -> StoredChain:
    """Makes what the store holds."""
    return StoredChain(FileStorage(tmp_path / "data"))
