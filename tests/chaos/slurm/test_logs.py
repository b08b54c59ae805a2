"""`headrace logs --follow` of one rank of a job on two nodes, while it is restarted, submitted again, and its log is renamed and cut."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.lease import Lease
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.journal import EventKind, RunFile
from schemas.stage import Stage
from tasks.runs import Run
from tests.chaos.slurm_trouble import CHECKOUT, MakeJob, job_ids, own_step, record_of, slurm
from tests.fakes.child_process import running
from tests.fakes.live_job import LiveJob

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.exhaustive, pytest.mark.usefixtures("cluster")]

STEPS = 140


def run_of(job: LiveJob, tmp_path: Path) -> Run:
    """The run whose training the job is."""
    run = Run(job.storage, "demo-20261122t020000-7f3a")
    fields: dict[str, Any] = {"run_id": run.layout.run_id, "recipe": "r.yaml", "overrides": (), "from_stage": None, "project_dir": str(tmp_path)}
    run.storage.create_exclusive(run.layout.config, canonical_json(RunFile(**fields, state_dir="/s", config={}, created_at=0.0, argv=())))
    run.append(EventKind.STAGE_STARTED, stage=Stage.TRAIN, artifact_key=job.layout.key)
    return run


def test_every_line_of_a_rank_is_shown_through_whatever_happens(make_job: MakeJob, tmp_path: Path) -> None:
    """It is killed on the way; its log is renamed; Slurm wants the nodes back; in the next job's life the log is cut."""
    faults = [{"rank": 1, "step": 20, "kind": "kill"}]
    job = make_job(num_nodes=2, ranks=1, options={"steps": STEPS, "step_s": 0.1, "talk": True, "faults": faults}, lost_after_s=60.0)

    def log(epoch: int) -> Path:
        (path,) = (tmp_path / "scratch").glob(f"*/n0001/e{epoch:06d}/log-000001.txt")
        return path

    def rename() -> None:
        log(1).rename(f"{log(1)}.1")
        job.when(reached(1, 60), lambda: (slurm("scancel", "--signal=TERM", *job_ids(job)), job.when(reached(2, 100), cut)))

    def cut() -> None:
        log(2).write_text("")

    def reached(epoch: int, step: int) -> Callable[[Any], bool]:
        return lambda view: bool(view.epoch == epoch and own_step(view) >= step)

    job.when(reached(1, 35), rename)
    run, output = run_of(job, tmp_path), tmp_path / "followed"
    program = (sys.executable, "-c", "from flows.cli import main; main()")
    argv = (*program, "logs", run.name, "--rank", "1", "--follow", "--storage", str(tmp_path / "data"))
    with (
        Lease.take(run.storage, run.layout.control) as lease,
        output.open("wb") as file,
        running(*argv, cwd=CHECKOUT, stdout=file, stderr=subprocess.PIPE) as follower,
    ):
        record = job.run()
        run.append(EventKind.STAGE_FINISHED, stage=Stage.TRAIN, artifact_key=job.layout.key)
        lease.release()
        _, errors = follower.communicate(timeout=60)
    assert follower.returncode == 0, errors
    assert (record.exit_code, job.attempts) == (ExitCode.DONE, (0, 1)), record.message
    assert [incident.exit_status for incident in record_of(job, 0).incidents if incident.rank == 1] == [-signal.SIGKILL]
    first, second, third = (steps_of(output.read_text(), epoch) for epoch in range(3))
    assert first == list(range(1, 21))
    assert second == list(range(second[0], second[-1] + 1)), "renaming costs no line"
    assert second[-1] >= 60
    assert third == sorted(set(third)), "each line once"
    assert (third[0], third[-1]) == (second[-1] + 1, STEPS), "cutting costs what was not published, and no more"


def steps_of(text: str, epoch: int) -> list[int]:
    return [int(step) for step in re.findall(rf"^epoch {epoch} step (\d+)$", text, re.MULTILINE)]
