"""Job specs for tests, complete and small."""

from pathlib import Path
from typing import Any

from cluster.storage import open_storage
from schemas.canonical import canonical_json
from schemas.job import JobKind, JobSpec, RestartLimits, WorkItem, WorkPlan
from schemas.stage import Stage

ARTIFACT = "train/fake-0123456789ab"
LIMITS = RestartLimits(max_failures=3, max_interruptions=100, max_attempts_without_progress=3, backoff_s=0.0)


def gang_request(tmp_path: Path, *, run_id: str = "run", ranks: int = 2, num_nodes: int = 1, **changes: Any) -> JobSpec:
    """Returns a request for a gang of `tests.fakes.gang_job`, whose options are 20 quick steps unless given."""
    options = {"steps": 20, "step_s": 0.02, "commit_every": 5, **changes.pop("options", {})}
    return _request(
        tmp_path,
        run_id=run_id,
        kind=JobKind.GANG,
        argv=("-m", "tests.fakes.gang_job"),
        ranks_per_node=ranks,
        num_nodes=num_nodes,
        options=options,
        **changes,
    )


def array_request(tmp_path: Path, *, items: int = 6, at_a_time: int = 2, num_nodes: int = 1, **changes: Any) -> JobSpec:
    """Returns a request for an array of `tests.fakes.array_job`, and freezes its plan; item i weighs i bytes."""
    plan = WorkPlan(stage=Stage.TRAIN, step_name="scan", items=tuple(WorkItem(index=i, weight_bytes=i, label=f"group {i}") for i in range(items)))
    open_storage(changes.get("storage_root", str(tmp_path / "data"))).create_exclusive(f"{ARTIFACT}/scan-plan.json", canonical_json(plan))
    return _request(
        tmp_path,
        run_id="run",
        kind=JobKind.ARRAY,
        argv=("-m", "tests.fakes.array_job"),
        step_name="scan",
        ranks_per_node=at_a_time,
        num_nodes=num_nodes,
        num_items=items,
        options={"item_s": 0.02, **changes.pop("options", {})},
        **changes,
    )


def _request(tmp_path: Path, **fields: Any) -> JobSpec:
    project = tmp_path / "project"
    project.mkdir(exist_ok=True)
    defaults: dict[str, Any] = {
        "stage": Stage.TRAIN,
        "artifact_key": ARTIFACT,
        "attempt": 0,
        "key": "",
        "limits": LIMITS,
        "storage_root": str(tmp_path / "data"),
        "scratch_dir": str(tmp_path / "scratch"),
        "project_dir": str(project),
        "inputs": {},
        "config": {},
        "grace_s": 5.0,
    }
    return JobSpec(**(defaults | fields))
