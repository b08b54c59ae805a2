"""Ranks that run in threads of this process and really meet: for code that is collective and computes nothing."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")
_TIMEOUT_S = 30


class Meeting:
    """The collectives of some ranks that run in threads."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._barrier = threading.Barrier(world_size)
        self._rows: list[list[int]] = [[] for _ in range(world_size)]

    def rank(self, rank: int) -> Any:
        """Returns one rank's place among them."""
        from tasks.train.gang import Gang

        meeting = self

        class Rank(Gang):
            def gather(self, values: Any) -> list[list[int]]:
                meeting._rows[rank] = list(values)
                meeting._barrier.wait(timeout=_TIMEOUT_S)
                rows = list(meeting._rows)
                meeting._barrier.wait(timeout=_TIMEOUT_S)
                return rows

        return Rank(rank=rank, world_size=self.world_size)


def together(world_size: int, act: Callable[[int], _T]) -> list[_T]:
    """Returns what `act(rank)` returns on every rank, all running at once."""
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(act, range(world_size), timeout=2 * _TIMEOUT_S))
