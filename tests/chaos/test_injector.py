"""The injector itself: plans travel as data, every turn is taken once, and a seed repeats a soak round exactly."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.injector import Faults, Point
from tests.chaos.soak import draw_plan
from tests.chaos.struck import Struck


def test_a_plan_survives_its_journey_as_json() -> None:
    plan = (
        Faults()
        .kill(rank=1, at_step=7)
        .kill_inside(rank=0, at_step=9, point=Point.REDUCE, peers_wait_s=0.1)
        .second_kill(rank=1, after_s=0.2)
        .corrupt(file="commit", damage="flip", of_step=10, at_step=12)
        .slow_fs(rank=1, path="step-00000010", seconds=2.0)
    )
    assert Faults.from_options(json.loads(json.dumps(plan.to_options()))) == plan


@pytest.mark.parametrize("seed", range(50))
def test_a_seed_repeats_a_round(seed: int) -> None:
    plan = draw_plan(seed)
    assert draw_plan(seed) == plan
    assert Faults.from_options(plan[1].to_options()) == plan[1]


def test_of_many_processes_one_gets_each_turn(tmp_path: Path) -> None:
    struck = Struck(tmp_path)
    with ThreadPoolExecutor(max_workers=8) as pool:
        taken = list(pool.map(lambda epoch: struck.take_turn(3, times=2, epoch=epoch), range(40)))
    assert sum(taken) == struck.count(3) == len(struck.times(3)) == 2
    assert struck.count(30) == 0


def test_a_second_kill_waits_for_a_later_epoch(tmp_path: Path) -> None:
    struck = Struck(tmp_path)
    assert struck.take_turn(0, times=1, epoch=4)
    assert not struck.struck_before(0, epoch=4)
    assert struck.struck_before(0, epoch=5)
