"""The whole pipeline on a real Kubernetes cluster, as a user runs it: every stage is made by pods, and nothing is left.

That the weights are those of one machine is shown by `make same-weights` (`test_same_weights.py`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from schemas.stage import Stage, stages_of
from tests.chaos.kubernetes_trouble import Place, place
from tests.fakes.live_job import wait_until
from tests.fakes.tiny_pipeline import make_project

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.kubernetes]

TRAINED: Mapping[str, Any] = {"training.steps": 20, "checkpoint.every_steps": 10, "tracking.validate_every_steps": 20, "cluster.threads_per_rank": 1}


def on_kubernetes(here: Place) -> dict[str, Any]:
    """Changes of a recipe that make its jobs pods: training on two nodes with a rank each."""
    section = here.cluster(kubeconfig=str(here.lab.kubeconfig)).model_dump(mode="json", exclude_defaults=True)
    return {
        **{f"cluster.{key}": value for key, value in section.items()},
        "cluster.ranks_per_node": 1,
        "cluster.max_parallel_items": 2,
        "cluster.stages": {"train": {"nodes": 2}},
    }


def test_every_stage_is_made_by_pods_and_nothing_is_left(kubernetes_nodes: Any, tmp_path: Path) -> None:
    with place(kubernetes_nodes, tmp_path) as here:
        remote = make_project(tmp_path / "remote", changes={**TRAINED, **on_kubernetes(here)})
        try:
            done = remote.headrace("run", "tiny.yaml", timeout_s=600.0)
            assert done.returncode == 0, done.stdout + done.stderr
        finally:
            remote.end()
        wait_until(here.is_empty)  # the API server removes in its own time what it was asked to remove
    view = remote.answer("status", "last")
    assert view["state"] == "finished"
    made = [stage for stage in view["stages"] if stage["stage"] != Stage.REGISTER.value]
    assert [stage["stage"] for stage in made] == [stage.value for stage in stages_of(prepared=False) if stage is not Stage.REGISTER]
    training = next(stage for stage in made if stage["stage"] == "train")
    assert {beat["host"] for beat in training["job"]["heartbeats"]} <= set(kubernetes_nodes.nodes)
    assert len(training["job"]["heartbeats"]) == 2
    submission = next(remote.artifact("train").glob("attempts/job-0000/submission.txt")).read_text()
    assert submission.startswith("apiVersion: v1\nkind: Service\n")
