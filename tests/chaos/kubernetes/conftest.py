"""A namespace on the test cluster for each test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.kubernetes_trouble import Place, place


@pytest.fixture
def here(kubernetes_nodes: Any, tmp_path: Path) -> Iterator[Place]:
    """An empty namespace, on a cluster of three nodes of which all are well."""
    with place(kubernetes_nodes, tmp_path) as found:
        yield found
