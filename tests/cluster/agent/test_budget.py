"""Real agents whose training has a budget: they stop in time by themselves, keep what is committed, and go on under a larger one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.attempt import read_exit
from cluster.budget import used_device_s
from cluster.job_view import JobView
from schemas.attempt import Cause
from schemas.exit_code import ExitCode
from schemas.job import JobSpec
from tasks.allowance import refuse_spent
from tests.fakes.job_request import LIMITS, gang_request
from tests.fakes.live_job import LiveJob, wait_until

pytestmark = pytest.mark.slow


class SupervisorGoneError(Exception):
    """What ends a supervisor, and nothing else."""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., LiveJob]]:
    jobs: list[LiveJob] = []

    def make(**fields: Any) -> LiveJob:
        jobs.append(LiveJob(gang_request(tmp_path, **fields)))
        return jobs[-1]

    yield make
    for made in jobs:
        made.sweep()


def under(budget_s: float, request: JobSpec) -> JobSpec:
    return request.model_copy(update={"device_s_allowed": budget_s})


@pytest.mark.parametrize("num_nodes", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_a_job_stops_for_its_budget_without_a_supervisor_and_goes_on_under_a_larger_one(job: Callable[..., LiveJob], num_nodes: int) -> None:
    """No other limit stops it: interruptions are answered by a restart, and there is none."""
    limits = LIMITS.model_copy(update={"max_interruptions": 0})
    options = {"steps": 1700, "later_step_s": 0.0}  # 34 s, and they are asked to stop after 19 s: ranks get to work on a busy machine, too
    allowed_s = 2.0 * num_nodes * 30.0
    live = job(ranks=2, num_nodes=num_nodes, options=options, device_s_allowed=allowed_s, grace_s=2.0, limits=limits)

    def vanish() -> None:
        raise SupervisorGoneError

    live.when(lambda view: view.step >= 3, vanish)
    with pytest.raises(SupervisorGoneError):
        live.run()
    wait_until(lambda: live.storage.exists(live.attempt(0).exit))
    ended = read_exit(live.storage, live.attempt(0))
    assert ended is not None
    assert (ended.exit_code, ended.cause) == (ExitCode.POLICY, Cause.BUDGET)
    assert ended.incidents[-1].committed_step >= ended.incidents[-1].step > 0
    assert ended.message.startswith("the budget is used up: ")
    assert "--set budget.gpu_hours=" in ended.message
    assert 0.0 < used_device_s(live.storage, live.layout) < allowed_s, "it stops before, not after"
    wait_until(lambda: live.family() == [])

    live.request = under(1e6, live.request)
    refuse_spent(live.storage, live.request)
    seen: list[JobView] = []
    live.when(lambda view: view.attempt == 1 and view.step > 0, lambda: seen.append(live.views[-1]))
    assert live.run().exit_code is ExitCode.DONE
    assert live.attempts == (0, 1)
    assert seen[0].step >= ended.incidents[-1].committed_step, "it went on from there"


def test_a_job_of_whose_budget_nothing_is_left_starts_no_rank(job: Callable[..., LiveJob]) -> None:
    live = job(device_s_allowed=1e-6)
    record = live.run()
    assert (record.exit_code, record.cause) == (ExitCode.POLICY, Cause.BUDGET)
    assert list(live.storage.names(live.layout.epochs)) == []
    wait_until(lambda: live.family() == [])
