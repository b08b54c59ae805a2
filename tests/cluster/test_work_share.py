"""Which items are whose, and in which order they start."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.work_share import order, share
from schemas.job import WorkItem


def items(weights: list[int]) -> list[WorkItem]:
    return [WorkItem(index=index, weight_bytes=weight, label=f"group {index}") for index, weight in enumerate(weights)]


def test_the_largest_items_start_first_and_equal_ones_in_order() -> None:
    assert [item.index for item in order(items([1, 5, 3, 5]))] == [1, 3, 2, 0]


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 6))
def test_nodes_share_each_item_once(weights: list[int], num_nodes: int) -> None:
    plan = items(weights)
    shares = [share(plan, node_rank=node, num_nodes=num_nodes) for node in range(num_nodes)]
    assert sorted(item.index for part in shares for item in part) == list(range(len(plan)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
