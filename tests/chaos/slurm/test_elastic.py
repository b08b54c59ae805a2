"""A training that loses nodes for good, on a real Slurm cluster: it goes on with those that are left, and with all of them once they are back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.acts import read_acts
from cluster.attempt import list_attempts, read_exit, read_heartbeats, read_spec
from cluster.elastic import reduction
from cluster.job_view import JobView
from cluster.layout import ArtifactLayout
from cluster.storage import Storage
from schemas.act import ActKind
from schemas.attempt import Cause
from schemas.checkpoint import TrainingState
from schemas.gang_shape import GangShape
from schemas.job import ElasticLimits
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.consumed import prescribed
from tasks.train.order import GlobalOrder
from tests.chaos.injector import Faults
from tests.chaos.live_training import LiveTraining, tiny_config
from tests.chaos.slurm_trouble import MakeJob, own_step, repair, slurm, starts, went_through

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

SHAPES = tuple(GangShape(num_nodes=nodes, ranks_per_node=1) for nodes in (2, 1))
SMALLER_AFTER_S = 12.0
"""Long enough for a busy machine to start a job whose nodes are there."""


class Scarcity:
    """Takes nodes away until one is left, and gives them back: acts on what a job's supervisor sees."""

    def __init__(self, cluster: Any, storage: Storage, layout: ArtifactLayout) -> None:
        self._cluster, self._storage, self._layout = cluster, storage, layout
        self._next: list[tuple[int, Callable[[JobView], bool], Callable[[], None]]] = [
            (0, lambda view: view.committed_step >= 5, self.take_away),
            (2, lambda view: own_step(view) >= self.committed + 3, self.give_back),
        ]
        self.committed = 0
        """Newest committed step when the nodes were taken."""

    def over(self, view: JobView) -> bool:
        """Acts once it is time, on the attempt and the condition that come next; returns whether nothing is left to do."""
        self.committed = max(self.committed, view.committed_step if view.attempt == 0 else 0)
        if self._next and view.attempt == self._next[0][0] and self._next[0][1](view):
            _, _, act = self._next.pop(0)
            act()
        return not self._next

    def take_away(self) -> None:
        """Powers one of the job's two nodes off, and drains the third."""
        first, second = (beat.host for beat in read_heartbeats(self._storage, self._layout.attempt("", 0)))
        (third,) = set(self._cluster.nodes) - {first, second}
        slurm("scontrol", "update", f"NodeName={third}", "State=DRAIN", "Reason=test")
        self._cluster.kill(second)
        slurm("scontrol", "update", f"NodeName={second}", "State=DOWN", "Reason=test")

    def give_back(self) -> None:
        """Repairs the nodes, then preempts the job: SIGTERM to its agents, as a scheduler does."""
        repair(self._cluster)
        slurm("scancel", "--signal=TERM", f"--name={read_spec(self._storage, self._layout.attempt('', 2)).key}")


def went_down_and_up(storage: Storage, layout: ArtifactLayout) -> None:
    """Four attempts on 2, 2 (never begun), 1 and 2 nodes."""
    attempts = [layout.attempt("", number) for number in list_attempts(storage, layout, step_name="")]
    specs, records = [read_spec(storage, attempt) for attempt in attempts], [read_exit(storage, attempt) for attempt in attempts]
    assert [spec.num_nodes for spec in specs] == [2, 2, 1, 2]
    assert [record and record.cause for record in records[1:]] == [Cause.QUEUE, Cause.PREEMPTION, Cause.FINISHED], records
    assert [len({beat.host for beat in read_heartbeats(storage, attempt)}) for attempt in attempts] == [2, 0, 1, 2]
    assert reduction(specs[2]) == f"1 of 2 nodes since attempt 2: the queue did not give 2 nodes within {SMALLER_AFTER_S:g} s"


def test_a_job_goes_on_with_fewer_nodes_and_later_with_all(make_job: MakeJob, cluster: Any) -> None:
    limits = ElasticLimits(shapes=SHAPES, smaller_after_s=SMALLER_AFTER_S)
    job = make_job(num_nodes=2, ranks=1, elastic=limits, lost_after_s=60.0, grace_s=1.0).lasting(through=2)
    job.when(Scarcity(cluster, job.storage, job.layout).over, lambda: None)
    record = job.run()
    went_down_and_up(job.storage, job.layout)
    first = starts(job).count(0)  # ranks that wait for the lost ones may start again before anybody knows why
    went_through(job, record, attempts=[0] * first + [2, 3])


@pytest.mark.exhaustive
def test_a_training_uses_every_sequence_once_whatever_nodes_it_has(cluster: Any, tmp_path: Path) -> None:
    """Real ranks: the state goes over whole at both changes, and each is an act that the model is tagged with."""
    nodes = {"kind": "slurm", "queue": "main", "nodes": 2, "min_nodes": 1, "ranks_per_node": 1, "threads_per_rank": 1}
    changes = {
        "training__steps": 150,
        "restart": {"smaller_after": f"{SMALLER_AFTER_S:g}s"},
        "cluster": {**nodes, "lost_after_s": 60.0, "grace_s": 30.0},
    }
    training = LiveTraining(tmp_path / "training", tiny_config(**changes))
    scarcity = Scarcity(cluster, training.storage, training.layout)

    def on_view(view: JobView) -> None:
        if scarcity.over(view) and view.attempt == 3:
            training.struck.let_go(0)

    training.on_view = on_view
    try:
        draft = training.run(Faults().slow_steps(seconds=0.3))  # until all nodes work again
    finally:
        repair(cluster)
        left = training.processes()
        training.sweep()
    assert left == []
    went_down_and_up(training.storage, training.layout)
    recipe = training.config.training
    store = CheckpointStore(training.artifact_dir)
    commit = store.read(150)
    assert commit is not None
    assert commit.world_size == 2
    state = TrainingState.model_validate_json((store.folder(commit) / "state.json").read_bytes())
    assert state.consumed == prescribed(150, order=GlobalOrder(61, recipe.seed), global_batch_size=recipe.global_batch_size)
    acts = read_acts(training.storage, training.layout)
    assert [(act.kind, act.world_size) for act in acts] == [(ActKind.RESIZED, 1), (ActKind.RESIZED, 2)]
    assert draft.summary["acts"] == [str(act) for act in acts], "what the model is tagged with"
