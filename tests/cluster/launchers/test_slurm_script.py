"""The batch script: one golden text, and what must hold for values that want to break out of it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.launchers.slurm_script import batch_script
from schemas.execution_config import StageResources
from schemas.job import JobKind, JobSpec, RestartLimits
from schemas.stage import Stage
from tests.fakes.golden import assert_golden

LIMITS = RestartLimits(max_failures=3, max_interruptions=100, max_attempts_without_progress=3, backoff_s=0.0)
RESOURCES = StageResources(queue="gpu", gpus_per_node=8, memory="900G", time_limit="24h", setup=("module load cuda",))


def spec(**changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "run_id": "demo-7f3a",
        "stage": Stage.TRAIN,
        "artifact_key": "train/demo-0123456789ab",
        "attempt": 3,
        "key": "demo-7f3a-train-abc123",
        "kind": JobKind.GANG,
        "argv": ("-m", "tasks.train.job"),
        "num_nodes": 4,
        "ranks_per_node": 8,
        "threads_per_rank": 6,
        "limits": LIMITS,
        "storage_root": "/shared/data",
        "scratch_dir": "/shared/state/scratch/demo-7f3a-train-abc123",
        "project_dir": "/home/me/project",
        "inputs": {},
        "config": {},
    }
    return JobSpec(**(fields | changes))


def script(job: JobSpec, resources: StageResources = RESOURCES, *, extra: tuple[str, ...] = ()) -> str:
    return batch_script(job, resources, extra_directives=extra, checkout="/opt/headrace", python="/opt/venv/bin/python")


def test_the_script() -> None:
    assert_golden("slurm_script.sh", script(spec(), extra=("--account=research", "--exclusive")))


def test_what_nobody_asked_for_is_not_there() -> None:
    text = script(spec(num_nodes=1), StageResources())
    assert not any(f"--{name}" in text for name in ("partition", "time", "mem=", "gpus"))


@pytest.mark.parametrize("evil", ['a"b', "a b", "a\\b", "a'b", "$(touch /tmp/x)", "a;b", "a%j", "`x`"])
def test_a_path_stays_one_value_whatever_it_holds(tmp_path: Path, evil: str) -> None:
    """The shell's half is run, with programs that write down what they were given in place of srun and the agent."""
    folder = tmp_path / evil
    folder.mkdir(parents=True)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >"{tmp_path}/arguments"\n')
    program.chmod(0o755)
    fake = tmp_path / "srun"
    fake.write_text('#!/bin/bash\nwhile [ "$1" != bash ]; do shift; done\nSLURM_NODEID=2 SLURMD_NODENAME=n2 SLURM_JOB_ID=7 exec "$@"\n')
    fake.chmod(0o755)
    job = spec(storage_root=str(folder), scratch_dir=str(folder / "scratch"))
    text = batch_script(job, StageResources(), extra_directives=(), checkout="/opt/headrace", python=str(program))
    subprocess.run(("bash", "-c", text), check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, cwd=tmp_path)
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[arguments.index("--storage") + 1] == str(folder)
    assert arguments[-6:] == ["--node-rank", "2", "--advertise", "n2", "--submission", "7.0"]
    assert (folder / "scratch" / "n0002" / "agent.log").exists()


def test_the_agents_exit_code_is_the_jobs(tmp_path: Path) -> None:
    fake = tmp_path / "srun"
    fake.write_text("#!/bin/bash\nexit 75\n")
    fake.chmod(0o755)
    done = subprocess.run(("bash", "-c", script(spec(), StageResources())), env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert done.returncode == 75
