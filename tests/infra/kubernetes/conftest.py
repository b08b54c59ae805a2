"""A namespace of its own for each test."""

import re
from typing import Any

import pytest

from tests.fakes.kubernetes_pods import Namespace


@pytest.fixture
def space(kubernetes_nodes: Any, request: pytest.FixtureRequest) -> Namespace:
    """On the cluster with nodes, all of which are ready."""
    kubernetes_nodes.wait_ready(*kubernetes_nodes.nodes)
    return Namespace(kubernetes_nodes.api(), re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")[:60])
