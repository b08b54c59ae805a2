"""The whole demo on a real Slurm cluster of three nodes on this machine; one of them is powered off in mid-training. Needs root, and Slurm.

    make slurm-demo          or          .venv/bin/python infra/slurm/demo.py [--steps 400] [--folder .headrace/slurm-demo]

Training takes two nodes, text a partition without GPUs. The cluster lies below /tmp and is taken down at the end, also after Ctrl-C; then it is
looked whether anything is left. Artifacts, the registered model and the curves stay in `--folder`.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from test_cluster import ClusterError, SlurmTestCluster

from cluster.storage import open_storage
from flows.conduct import isolate
from flows.demo import last_screen
from schemas.journal import RunHandle
from schemas.stage import Stage
from schemas.view import JobProgress
from tasks.runs import Run, list_runs
from tasks.views import job_progress

_CHECKOUT = Path(__file__).resolve().parents[2]
_RECIPE = _CHECKOUT / "infra/recipes/demo_cpu.yaml"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # this is the thing that is looked at
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AT_SHARE = 0.5
"""Of training's steps: when the node goes."""
_TO_STOP_S = 90.0
"""Longest wait for a pipeline that was asked to stop: jobs commit first."""
_TO_VANISH_S = 20.0
"""Longest wait for what ends by itself: the Prefect server does a little after its last user."""


def main() -> int:
    """Runs the demo. Returns the pipeline's exit code; 1: something is left; 2: there can be no cluster here; 130: Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--folder", type=Path, default=_CHECKOUT / ".headrace/slurm-demo", help="for artifacts and state")
    arguments = parser.parse_args()
    for number in _ENDING:
        signal.signal(number, _stop_once)
    memory_before, left = set(_SHARED_MEMORY.iterdir()), list[str]()
    place, folder = Path(tempfile.mkdtemp(prefix="headrace-", dir="/tmp")), arguments.folder.resolve()  # short: sockets lie below it
    try:
        with _cluster(place) as cluster:
            try:
                code = _run(cluster, folder=folder, steps=arguments.steps)
            finally:
                left += _jobs(cluster)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        code = 130
    left += _left_over((place, folder), memory_before=memory_before)
    print("\n".join(["left over:", *left]) if left else "the cluster is down; no job, no process and no shared memory is left")
    return code or int(bool(left))


def _stop_once(number: int, frame: object) -> None:
    """Ends the demo at the first signal. The way down is bounded, and no further one interrupts it."""
    del number, frame
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def _cluster(folder: Path) -> Iterator[SlurmTestCluster]:
    cluster = SlurmTestCluster(folder)
    try:
        cluster.up(nodes=3, gpus=1)
        print(f"cluster: {len(cluster.nodes)} nodes with a pretended GPU each; in another terminal: . {folder}/env.sh; squeue", flush=True)
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder)


# ---- the pipeline ------------------------------------------------------------------------------------------------------


def _run(cluster: SlurmTestCluster, *, folder: Path, steps: int) -> int:
    """Runs the pipeline, powers a node off in the middle, and prints the last screen. Returns the pipeline's exit code."""
    storage = open_storage(str(folder / "data"))
    earlier = set(list_runs(storage))
    folder.mkdir(parents=True, exist_ok=True)
    recipe = shutil.copyfile(_RECIPE, folder / "demo.yaml")  # a project of its own, unless it lies in one
    headrace = (str(Path(sys.executable).with_name("headrace")), "run", str(recipe), "--from", Stage.VALIDATE.value)
    argv = [*headrace, *(word for assignment in _assignments(folder, steps=steps) for word in ("--set", assignment))]
    # A session of its own: Ctrl-C at the terminal is for this process, which passes one signal on.
    process = subprocess.Popen(argv, cwd=_CHECKOUT, env=_environment(cluster, state_dir=folder / "state"), start_new_session=True)
    try:
        while process.poll() is None:
            time.sleep(0.5)
            new = set(list_runs(storage)) - earlier
            training = _training(Run(storage, new.pop())) if new else None
            if training is not None and training.committed_step > 0 and training.step >= steps * _AT_SHARE:
                _power_off(cluster, training)
                break
        code = process.wait()
    finally:
        _stop(process)
    if code == 0:
        run_id = list_runs(storage)[0]
        print("\n".join(["", *last_screen(RunHandle(run_id=run_id, storage_root=storage.url, state_dir=str(folder / "state")))]))
    return code


def _assignments(folder: Path, *, steps: int) -> tuple[str, ...]:
    """What differs from the demo on one machine."""
    values = {
        "name": "slurm-demo",
        "storage.root": str(folder / "data"),
        "state": str(folder / "state"),
        "training.steps": steps,
        "training.schedule.decay_steps": steps * 3 // 5,
        "training.schedule.warmup_steps": steps // 10,
        "cluster.kind": "slurm",
        "cluster.queue": "cpu",
        "cluster.ranks_per_node": 1,
        "cluster.stages": {"train": {"queue": "gpu", "nodes": 2, "gpus_per_node": 1}},
    }
    return tuple(f"{key}={json.dumps(value)}" for key, value in values.items())


def _environment(cluster: SlurmTestCluster, *, state_dir: Path) -> dict[str, str]:
    """This process's, without what the user's shell says of other clusters and services."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    isolate(environment, state_dir=state_dir)
    return {**environment, **cluster.variables}


def _training(run: Run) -> JobProgress | None:
    pointer = run.pointer(Stage.TRAIN)
    return job_progress(run.storage, pointer.key, now=time.time()) if pointer is not None else None


def _power_off(cluster: SlurmTestCluster, training: JobProgress) -> None:
    """Takes the node of the first agent away, which leads the others and would have told how the job ended."""
    node = training.heartbeats[0].host
    cluster.kill(node)
    print(f"{node} is powered off at step {training.step}; Slurm believes it for some 15 s yet", flush=True)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Asks a pipeline that still runs to stop, and waits for it."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=_TO_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ---- what is left ------------------------------------------------------------------------------------------------------


def _jobs(cluster: SlurmTestCluster) -> list[str]:
    """Returns the jobs that are still in the queue once there was time to leave it."""
    deadline = time.monotonic() + _TO_VANISH_S
    while (jobs := cluster.ask("squeue", "--noheader", "--format=job %A %j %T").splitlines()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return jobs


def _left_over(folders: tuple[Path, ...], *, memory_before: set[Path]) -> list[str]:
    """Returns processes and shared memory that are left of the demo once there was time to end."""
    deadline = time.monotonic() + _TO_VANISH_S
    while True:
        left = [*_processes(folders), *(str(path) for path in set(_SHARED_MEMORY.iterdir()) - memory_before if not _is_in_use(path))]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def _processes(folders: tuple[Path, ...]) -> Iterator[str]:
    """Yields the processes that name one of the folders in their command line or environment."""
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(folder) in word for folder in folders for word in words):
            yield f"{process.pid} {' '.join(process.cmdline())[:100]}"


def _is_in_use(path: Path) -> bool:
    """Whether a living process maps the file: others use shared memory, too."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(path) in maps.read_text(errors="replace"):
                return True
        except OSError:  # ended meanwhile
            continue
    return False


if __name__ == "__main__":
    raise SystemExit(main())
