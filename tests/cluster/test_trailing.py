"""Items that hang, items that trail, and what an idle node does about them: signs and a clock's readings in, findings out."""

from collections.abc import Collection
from typing import Any

import pytest

from cluster.trailing import (
    FEW_ITEMS,
    LEAST_TRAILING_S,
    QUIET_LIMIT_S,
    SILENCES,
    TRAILING_FACTOR,
    ItemPace,
    ItemSigns,
    ItemWatch,
    help_wanted,
)
from cluster.watchdog import LEAST_LIMIT_S, ProcessFacts, ProcessState
from schemas.job import WorkItem
from schemas.progress import ItemInWork

TICK_S = 1.0
DISK_LIMIT_S = 300.0
PID = 4711


class Item:
    """One item under watch, and a clock that a test moves."""

    def __init__(self) -> None:
        self.pace = ItemPace()
        self.watch = ItemWatch(self.pace, disk_limit_s=DISK_LIMIT_S)
        self.now, self.cpu_s, self.done_bytes, self.state = 1000.0, 0.0, 0, ProcessState.SLEEPING

    def wait(self, seconds: float, *, cpu_share: float = 0.0, bytes_per_s: int = 0) -> float | None:
        """Looks every second for so long; returns after how many of them a hang was found, or None."""
        for tick in range(round(seconds / TICK_S)):
            self.now += TICK_S
            self.cpu_s += cpu_share * TICK_S
            self.done_bytes += round(bytes_per_s * TICK_S)
            facts = ProcessFacts(state=self.state, cpu_s=self.cpu_s)
            if PID in self.watch.look({PID: ItemSigns(index=3, done_bytes=self.done_bytes, facts=facts)}, now=self.now):
                return (tick + 1) * TICK_S
        return None


def test_an_item_that_is_stopped_hangs_within_seconds_whatever_it_was_granted() -> None:
    item = Item()
    item.pace.longest_silence_s = 1000.0
    assert item.wait(30, cpu_share=1.0) is None
    item.state = ProcessState.STOPPED
    assert item.wait(60) == pytest.approx(LEAST_LIMIT_S, abs=2 * TICK_S)


def test_one_that_goes_on_in_time_is_left_alone() -> None:
    item = Item()
    for _ in range(20):
        item.state = ProcessState.STOPPED
        assert item.wait(LEAST_LIMIT_S - TICK_S) is None
        item.state = ProcessState.RUNNING
        assert item.wait(2, cpu_share=1.0) is None


def test_an_item_that_does_nothing_hangs() -> None:
    item = Item()
    item.wait(10, cpu_share=0.5)
    assert item.wait(600) == pytest.approx(QUIET_LIMIT_S, abs=2 * TICK_S)


def test_timers_of_idle_threads_are_no_signs_of_life() -> None:
    assert Item().wait(600, cpu_share=0.0005) is not None


@pytest.mark.parametrize("signs", [{"cpu_share": 1.0}, {"cpu_share": 0.01}, {"bytes_per_s": 1}])
def test_who_computes_or_tells_something_never_hangs(signs: dict[str, Any]) -> None:
    assert Item().wait(24 * 3600, **signs) is None


def test_one_that_the_machine_does_not_let_run_does_not_hang() -> None:
    item = Item()
    item.state = ProcessState.RUNNING
    assert item.wait(3600) is None


def test_one_that_waits_for_a_disk_is_granted_as_much_as_storage_is() -> None:
    item = Item()
    item.state = ProcessState.DISK
    assert item.wait(2000) == pytest.approx(DISK_LIMIT_S, abs=2 * TICK_S)


def test_silences_that_ended_well_are_granted_again_and_more() -> None:
    item = Item()
    assert item.wait(QUIET_LIMIT_S - 10) is None
    assert item.wait(5, cpu_share=1.0) is None
    assert item.wait(1000) == pytest.approx(SILENCES * (QUIET_LIMIT_S - 9), abs=3 * TICK_S)


def test_a_suspended_watcher_takes_nobody_for_silent() -> None:
    item = Item()
    item.wait(5)
    for _ in range(20):
        item.now += 3600.0
        assert item.wait(1) is None


def test_another_process_of_the_same_item_begins_anew() -> None:
    item = Item()
    item.wait(QUIET_LIMIT_S - 5)
    item.watch.look({}, now=item.now)
    assert item.wait(QUIET_LIMIT_S - 5) is None


# ---- trailing ---------------------------------------------------------------------------------------------------------


def pace(*finished: tuple[int, float]) -> ItemPace:
    return ItemPace(finished=list(finished))


def item(index: int = 0, *, weight: int = 100) -> WorkItem:
    return WorkItem(index=index, weight_bytes=weight, label=f"g{index:04d}")


def at_work(running_s: float, *, done: int = 0, index: int = 0) -> ItemInWork:
    return ItemInWork(index=index, running_s=running_s, done_bytes=done)


def test_nothing_is_expected_while_few_are_finished() -> None:
    few = pace(*[(100, 20.0)] * (FEW_ITEMS - 1))
    assert few.expected_s(100) is None
    assert not few.is_trailing(item(), at_work(1e6))


@pytest.mark.parametrize(("weight", "expected_s"), [(1, 20.0), (100, 20.0), (250, 50.0)])
def test_small_items_are_granted_the_median_and_large_ones_more(weight: int, expected_s: float) -> None:
    assert pace((100, 20.0), (10, 1.0), (1000, 100.0)).expected_s(weight) == pytest.approx(expected_s)


def test_an_item_trails_beyond_three_times_what_is_expected() -> None:
    seen = pace(*[(100, 20.0)] * 5)
    assert not seen.is_trailing(item(), at_work(TRAILING_FACTOR * 20.0))
    assert seen.is_trailing(item(), at_work(TRAILING_FACTOR * 20.0 + 1.0))
    assert not seen.is_trailing(item(weight=300), at_work(TRAILING_FACTOR * 20.0 + 1.0))


def test_an_item_of_seconds_does_not_trail() -> None:
    assert not pace(*[(100, 0.1)] * 5).is_trailing(item(), at_work(LEAST_TRAILING_S - 1.0))


def test_one_that_would_be_done_sooner_than_another_run_does_not_trail() -> None:
    seen = pace(*[(100, 20.0)] * 5)
    assert not seen.is_trailing(item(), at_work(100.0, done=90)), "11 s to go, another run takes 20"
    assert seen.is_trailing(item(), at_work(100.0, done=50)), "100 s to go"


PLAN = tuple(item(index) for index in range(6))
QUICK = pace(*[(100, 2.0)] * 5)


def wanted(*, done: Collection[int] = (), own: Collection[int] = (), **elsewhere: list[ItemInWork]) -> list[tuple[int, bool]]:
    runs = {int(name.removeprefix("on_")): found for name, found in elsewhere.items()}
    return [(each.item.index, each.trailing is not None) for each in help_wanted(PLAN, done=done, own=own, elsewhere=runs, pace=QUICK)]


def test_what_nobody_has_begun_comes_first_from_the_end_then_what_trails_most() -> None:
    found = wanted(done={0}, own={1}, on_2=[at_work(40.0, index=2)], on_3=[at_work(90.0, index=3)])
    assert found == [(5, False), (4, False), (3, True), (2, True)]


def test_what_goes_well_elsewhere_is_left_there() -> None:
    assert wanted(done={0, 1, 2, 3, 4}, on_5=[at_work(10.0, index=5)]) == []


def test_nothing_runs_three_times() -> None:
    assert wanted(done={0, 1, 2, 3, 4}, on_5=[at_work(900.0, index=5), at_work(40.0, index=5)]) == []
