"""How many processes train together, and on how many nodes: which shapes give every rank equal work. PURE."""

from collections.abc import Sequence

from schemas.frozen import Frozen


class GangShape(Frozen):
    """So many ranks on each of so many nodes."""

    num_nodes: int
    """Nodes."""
    ranks_per_node: int
    """Ranks on each of them."""

    @property
    def world_size(self) -> int:
        """Ranks."""
        return self.num_nodes * self.ranks_per_node


def gang_shapes(world_sizes: Sequence[int], *, most_nodes: int, most_per_node: int, min_nodes: int | None = None) -> tuple[GangShape, ...]:
    """Returns the shapes that a gang may have, largest first; each has more ranks than any with fewer nodes, so no node is asked for in vain.

    Args:
        world_sizes: the feasible ones; 1 is among them.
        most_nodes: nodes to be had.
        most_per_node: ranks that a node takes.
        min_nodes: fewest nodes of a shape that is not the largest. None: there is only the largest.
    """
    shapes: list[GangShape] = []
    for num_nodes in range(1, most_nodes + 1):
        fitting = (size for size in world_sizes if size % num_nodes == 0 and size // num_nodes <= most_per_node)
        world_size = max(fitting, default=0)
        if world_size > (shapes[-1].world_size if shapes else 0):
            shapes.append(GangShape(num_nodes=num_nodes, ranks_per_node=world_size // num_nodes))
    largest, *smaller = reversed(shapes)
    return (largest, *(shape for shape in smaller if min_nodes is not None and shape.num_nodes >= min_nodes))
