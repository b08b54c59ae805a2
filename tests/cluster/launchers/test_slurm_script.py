"""The batch script: one golden text, and what must hold for values that want to break out of it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.launchers.slurm_container import Container
from cluster.launchers.slurm_script import batch_script
from schemas.cluster_config import ClusterConfig, ContainerRuntime, StageResources
from schemas.errors import ConfigError
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


def script(job: JobSpec, resources: StageResources = RESOURCES, *, extra: tuple[str, ...] = (), container: Container | None = None) -> str:
    python = "/opt/venv/bin/python"
    return batch_script(job, resources, extra_directives=extra, checkout="/opt/headrace", python=python, container=container)


def test_the_script() -> None:
    assert_golden("slurm_script.sh", script(spec(), extra=("--account=research", "--exclusive")))


@pytest.mark.parametrize("runtime", list(ContainerRuntime))
def test_the_script_of_agents_in_containers(runtime: ContainerRuntime) -> None:
    text = script(spec(), container=container_of(runtime, gpus_per_node=8))
    assert_golden(f"slurm_script_{runtime}.sh", "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#SBATCH")))


def container_of(runtime: ContainerRuntime, **fields: Any) -> Container:
    image = "registry.example.com#headrace:1.2" if runtime is ContainerRuntime.PYXIS else "/images/head race.sif"
    values = {"kind": "slurm", "container": runtime, "image": image, "mounts": ["/datasets", "/etc/x:/y:ro"], "container_options": ["--rocm"]}
    found = Container.of(spec(), ClusterConfig.model_validate(values | fields), checkout="/home/me/project/headrace")
    assert found is not None
    return found


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


def test_a_folder_that_no_container_can_be_shown_is_refused_with_its_key() -> None:
    cluster = ClusterConfig.model_validate({"kind": "slurm", "container": "apptainer", "image": "a.sif"})
    with pytest.raises(ConfigError) as error:
        Container.of(spec(storage_root="/shared/a,b", project_dir="/home/me:x"), cluster, checkout="/opt/headrace")
    assert sorted(problem.key for problem in error.value.problems) == ["storage.root", "the project folder"]


def test_of_object_storage_its_cache_is_shown() -> None:
    cluster = ClusterConfig.model_validate({"kind": "slurm", "container": "apptainer", "image": "a.sif"})
    found = Container.of(spec(storage_root="s3://bucket/data"), cluster, checkout="/opt/headrace")
    assert found is not None
    assert found.mounts == tuple(f"{path}:{path}" for path in ("/home/me/project", "/opt/headrace", "/shared/state/scratch"))


def test_what_one_folder_holds_is_shown_once() -> None:
    job = spec(storage_root="/home/me/data", scratch_dir="/home/me/state/scratch/k", project_dir="/home/me")
    cluster = ClusterConfig.model_validate({"kind": "slurm", "container": "apptainer", "image": "a.sif"})
    found = Container.of(job, cluster, checkout="/opt/headrace")
    assert found is not None
    assert found.mounts == ("/home/me:/home/me", "/opt/headrace:/opt/headrace")


MODULE = """# as sites have it: only where it is not there already, and with variables that are not set
if [ -n "$NO_SUCH_VARIABLE" ]; then exit 1; fi
module() { eval "export LOADED_$2=yes"; }
"""


def test_module_is_a_command_of_setup_lines(tmp_path: Path) -> None:
    """A batch shell is no login shell, and knows no functions of the user's."""
    profile = tmp_path / "profile.d"
    profile.mkdir()
    (profile / "00-modulepath.sh").write_text("export MODULEPATH=/apps\n")
    (profile / "modules.sh").write_text(MODULE)
    (profile / "z00_lmod.sh").write_text("exit 1  # defines what is there already\n")
    fake = tmp_path / "srun"
    fake.write_text(f'#!/bin/bash\nenv >"{tmp_path}/environment"\n')
    fake.chmod(0o755)
    text = script(spec(), StageResources(setup=("module load cuda", "export NCCL_DEBUG=INFO")))
    assert "/etc/profile.d/" in text
    subprocess.run(("bash", "-c", text.replace("/etc/profile.d", str(profile))), check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    variables = (tmp_path / "environment").read_text().splitlines()
    assert {"LOADED_cuda=yes", "NCCL_DEBUG=INFO", "MODULEPATH=/apps"} <= set(variables)
