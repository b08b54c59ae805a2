"""The step's clock: times that add up, and a sign of life with every part."""

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.agent.pulse import SLOT_BYTES, Pulse, PulseBoard
from schemas.progress import RankPhase, RankPulse
from tasks.train.clock import StepClock


@pytest.fixture
def board(tmp_path: Path) -> Iterator[PulseBoard]:
    board = PulseBoard([0], folder=tmp_path)
    yield board
    board.close()


@pytest.fixture
def clock(board: PulseBoard) -> StepClock:
    number = os.open(board.place(0).rpartition(":")[0], os.O_RDWR)
    try:
        return StepClock(Pulse(mmap.mmap(number, SLOT_BYTES)))
    finally:
        os.close(number)


def read(board: PulseBoard) -> RankPulse:
    return next(board.read())


def test_parts_add_up_to_all_the_time_there_was(clock: StepClock) -> None:
    before = time.perf_counter()
    clock.take_totals()
    began = time.perf_counter()
    for step in range(3):
        clock.start(step)
        for part in ("data_s", "forward_s", "backward_s", "forward_s"):
            time.sleep(0.001)
            clock.lap(part)
    at_least = time.perf_counter() - began
    totals = clock.take_totals()
    assert at_least <= sum(totals.values()) <= time.perf_counter() - before
    assert set(totals) == {"data_s", "forward_s", "backward_s", "other_s"}
    assert sum(clock.take_totals().values()) < sum(totals.values()), "each second is handed out once"


def test_every_part_is_a_sign_of_life_and_tells_where_the_rank_is(clock: StepClock, board: PulseBoard) -> None:
    clock.start(7)
    first = read(board)
    assert (first.step, first.position, first.part, first.phase) == (7, 0, "", RankPhase.COMPILING)
    clock.lap("data_s")
    clock.lap("forward_s")
    now = read(board)
    assert (now.step, now.position, now.part) == (7, 2, "forward_s")
    assert now.beats == first.beats + 2
    forward_s = clock.parts["forward_s"]
    clock.start(8)
    assert read(board).forward_s == pytest.approx(forward_s), "told of whole steps"


def test_only_the_first_step_is_one_in_which_libraries_compile(clock: StepClock, board: PulseBoard) -> None:
    clock.start(7)
    clock.start(8)
    assert read(board).phase is RankPhase.STEPPING
