"""Which shapes a gang may have: equal work for every rank, no node in vain."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.gang_shape import GangShape, gang_shapes
from schemas.sizing import training_size
from tests.fakes.in_process_work import config_with


def of(num_nodes: int, ranks_per_node: int) -> GangShape:
    return GangShape(num_nodes=num_nodes, ranks_per_node=ranks_per_node)


def divisors(number: int) -> tuple[int, ...]:
    return tuple(size for size in range(1, number + 1) if number % size == 0)


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({"ranks_per_node": 2}, of(1, 2)),
        ({}, of(1, 1)),
        ({"kind": "slurm", "nodes": 2, "ranks_per_node": 3}, of(2, 3)),
        ({"kind": "slurm", "nodes": 5, "gpus_per_node": 1}, of(3, 1)),
        ({"kind": "slurm", "nodes": 4, "gpus_per_node": 8}, of(1, 6)),
        ({"kind": "slurm", "nodes": 2, "gpus_per_node": 5}, of(2, 3)),
        ({"kind": "slurm", "nodes": 1, "ranks_per_node": 1, "stages": {"train": {"nodes": 2, "ranks_per_node": 3}}}, of(2, 3)),
    ],
)
def test_the_largest_gang_that_gives_equal_work(cluster: dict[str, Any], expected: GangShape) -> None:
    """12 sequences in micro-batches of 2: 1, 2, 3 or 6 ranks."""
    config = config_with(training={"steps": 100, "global_batch_size": 12, "micro_batch_size": 2}, cluster=cluster)
    assert config.gang_shapes == (expected,)


@pytest.mark.parametrize(
    ("batch", "most_nodes", "most_per_node", "min_nodes", "expected"),
    [
        (64, 4, 8, 1, [of(4, 8), of(2, 8), of(1, 8)]),
        (64, 4, 8, 2, [of(4, 8), of(2, 8)]),
        (64, 4, 8, 3, [of(4, 8)]),
        (64, 4, 8, None, [of(4, 8)]),
        (6, 3, 1, 1, [of(3, 1), of(2, 1), of(1, 1)]),
        (6, 3, 4, 1, [of(2, 3), of(1, 3)]),
        (7, 4, 2, 1, [of(1, 1)]),
    ],
)
def test_smaller_shapes_down_to_the_fewest_nodes(
    batch: int, most_nodes: int, most_per_node: int, min_nodes: int | None, expected: list[GangShape]
) -> None:
    assert list(gang_shapes(divisors(batch), most_nodes=most_nodes, most_per_node=most_per_node, min_nodes=min_nodes)) == expected


@given(st.integers(1, 240), st.integers(1, 12), st.integers(1, 16), st.integers(1, 12))
def test_every_shape_is_feasible_and_none_asks_for_a_node_in_vain(batch: int, most_nodes: int, most_per_node: int, min_nodes: int) -> None:
    shapes = gang_shapes(divisors(batch), most_nodes=most_nodes, most_per_node=most_per_node, min_nodes=min_nodes)
    assert all(batch % shape.world_size == 0 for shape in shapes)
    assert all(shape.num_nodes <= most_nodes and shape.ranks_per_node <= most_per_node for shape in shapes)
    assert all(shape.num_nodes >= min_nodes for shape in shapes[1:])
    for larger, smaller in pairwise(shapes):
        assert larger.num_nodes > smaller.num_nodes
        assert larger.world_size > smaller.world_size


def test_the_plan_counts_what_the_smallest_shape_needs() -> None:
    """Under ZeRO, the fewer ranks there are, the more of the state each holds."""
    training = {"steps": 100, "global_batch_size": 16, "micro_batch_size": 4, "zero_stage": 3}
    size = training_size(config_with(training=training, cluster={"kind": "slurm", "nodes": 4, "min_nodes": 1}))
    assert size.attempt_shapes == (of(4, 1), of(2, 1), of(1, 1))
    assert size.memory is not None
    assert size.most_memory is not None
    assert size.most_memory.optimizer == 4 * size.memory.optimizer
