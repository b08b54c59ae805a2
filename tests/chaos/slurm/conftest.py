"""Jobs on a real Slurm cluster that have ended when the test has, and the cluster whole again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.launchers.slurm_queue import ANSWER_S
from schemas.cluster_config import ClusterConfig
from tests.chaos.slurm_trouble import (
    LOST_AFTER_S,
    MAIN,
    MakeJob,
    Shims,
    repair,
    slurm_job,
    sweep,
)
from tests.fakes.job_request import gang_request
from tests.fakes.live_job import LiveJob

STEPS = {"steps": 40, "step_s": 0.05, "commit_every": 5}


@pytest.fixture
def cluster(slurm_cluster: Any) -> Iterator[Any]:
    """The cluster of all tests, whole again afterwards."""
    yield slurm_cluster
    repair(slurm_cluster)


@pytest.fixture
def make_job(cluster: Any, tmp_path: Path) -> Iterator[MakeJob]:
    """Makes jobs that have ended when the test has."""
    made: list[LiveJob] = []

    def make(*, cluster: ClusterConfig = MAIN, answer_s: float = ANSWER_S, options: dict[str, Any] | None = None, **changes: Any) -> LiveJob:
        request = gang_request(tmp_path, options={**STEPS, **(options or {})}, **{"lost_after_s": LOST_AFTER_S, **changes})
        made.append(slurm_job(request, cluster=cluster, answer_s=answer_s))
        return made[-1]

    yield make
    repair(cluster)
    for job in made:
        sweep(job)


@pytest.fixture
def shims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shims:
    return Shims(tmp_path / "commands", monkeypatch)
