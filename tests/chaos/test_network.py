"""Networks that cut, delay and lose, with the real engine (rows 35-37 of the fault matrix)."""

import time

import pytest

from cluster.job_view import JobView
from schemas.attempt import Cause
from schemas.exit_code import ExitCode
from tests.chaos.conftest import MakeTraining
from tests.chaos.injector import Faults, Point
from tests.chaos.live_training import LiveTraining
from tests.chaos.wire import Condition, Wire, WiredLauncher

pytestmark = pytest.mark.slow


def test_cut_connections_and_a_taken_port_cost_a_restart_and_no_human(make_training: MakeTraining, calm_hash: str) -> None:
    """Rows 35 and 37: the rendezvous port is taken at the first start; later connections between ranks are reset, twice."""
    training = make_training()
    faults = Faults().take_port().reset_connections(rank=1, at_step=7).reset_connections(rank=0, at_step=13, point=Point.STEP)
    assert training.run(faults).content_hash == calm_hash
    assert training.exit_record().exit_code is ExitCode.DONE
    taken, first, second = training.incidents()
    assert (taken.cause, taken.rank, taken.step, taken.decision) == (Cause.NODE, 0, 0, "restart")
    assert any("Address already in use" in line for line in taken.evidence)
    assert [(one.cause, one.step, one.decision) for one in (first, second)] == [(Cause.NODE, 7, "restart"), (Cause.NODE, 13, "restart")]
    rendezvous = [epoch.rendezvous for epoch in training.epochs()]
    assert len(rendezvous) == 4
    assert len(set(rendezvous)) >= 3, "each start asks for a port of its own"  # the kernel draws: two may be equal, by chance


def settle(training: LiveTraining) -> None:
    """Waits until nothing has been committed for six seconds."""
    before: list[int] | None = None
    while before != (before := training.commits()):
        time.sleep(6.0)


@pytest.mark.exhaustive
def test_slow_is_not_dead_and_a_partition_commits_nothing(make_training: MakeTraining, calm_hash: str) -> None:
    """Row 36: two nodes whose wire is slow, then lossy, then cut until ranks start anew."""
    training = make_training(cluster__nodes=2, cluster__ranks_per_node=1)
    committed_while_cut: list[tuple[int, ...]] = []
    with Wire(seed=36) as wire:
        training.launcher = WiredLauncher(wire)

        def weather(view: JobView) -> None:
            if wire.condition.is_cut:
                committed_while_cut.append(tuple(training.commits()))
                if view.epoch > 0:  # the ranks were given up, and wait for each other anew
                    wire.condition = Condition()
            elif view.epoch > 0:
                return
            elif view.step >= 12:
                wire.condition = Condition(is_cut=True)
                settle(training)  # heartbeats tell of a moment ago: what both sides had agreed on by then is committed now
            elif view.step >= 8:
                wire.condition = Condition(loss=0.05)
            elif view.step >= 2:
                wire.condition = Condition(delay_s=0.1)

        training.on_view = weather
        draft = training.run(Faults().slow_steps(seconds=0.3))
    assert draft.content_hash == calm_hash
    assert wire.num_lost > 0
    (incident,) = training.incidents()
    assert incident.cause in (Cause.HANG, Cause.NODE), "slow and lossy is no incident, cut off is one"
    assert incident.step >= 12
    assert len(set(committed_while_cut)) == 1, "neither side commits alone"
    assert training.exit_record().exit_code is ExitCode.DONE
