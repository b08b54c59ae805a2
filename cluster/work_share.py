"""Which items of a plan are whose, and in which order they start. PURE."""

from collections.abc import Iterable

from schemas.job import WorkItem


def order(items: Iterable[WorkItem]) -> tuple[WorkItem, ...]:
    """Returns the items in the order in which they start: the largest first, so that no long one is left for the end."""
    return tuple(sorted(items, key=lambda item: (-item.weight_bytes, item.index)))


def share(items: Iterable[WorkItem], *, node_rank: int, num_nodes: int) -> tuple[WorkItem, ...]:
    """Returns a node's part of a plan, in order of starting. Over all nodes the parts are the plan, each item once."""
    return order(items)[node_rank::num_nodes]
