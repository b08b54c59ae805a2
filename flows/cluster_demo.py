"""What the demos on whole clusters share: the pipeline runs, something happens to it in mid-training, and nothing is left."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from cluster.storage import open_storage
from flows.conduct import isolate
from flows.demo import last_screen
from schemas.journal import RunHandle
from schemas.stage import Stage
from schemas.view import JobProgress
from tasks.runs import Run, list_runs
from tasks.views import job_progress

_CHECKOUT = Path(__file__).resolve().parents[1]
_RECIPE = _CHECKOUT / "infra/recipes/demo_cpu.yaml"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # this is the thing that is looked at
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLUSTERS = ("SLURM_", "KUBE")
"""Beginnings of variables that speak of clusters."""
_AT_SHARE = 0.5
"""Of training's steps: when it happens."""
_TO_STOP_S = 90.0
"""Longest wait for a pipeline that was asked to stop: jobs commit first."""
_TO_VANISH_S = 20.0
"""Longest wait for what ends by itself: the Prefect server does a little after its last user."""


_Cluster = TypeVar("_Cluster")


def demonstrate(
    about: str,
    *,
    folder: Path,
    start: Callable[[Path], AbstractContextManager[_Cluster]],
    changes: Callable[[Path], Mapping[str, Any]],
    variables: Callable[[_Cluster], Mapping[str, str]],
    disturb: Callable[[_Cluster, JobProgress], None],
    work_left: Callable[[_Cluster], list[str]],
    refusal: type[Exception],
) -> int:
    """Runs a demo from the command line and looks whether anything is left. Returns an exit code: the pipeline's; 1: something is left; 2: there
    can be no cluster here; 130: Ctrl-C.

    Args:
        about: for `--help`.
        folder: default for artifacts and state.
        start: starts the cluster in a folder, and takes it down.
        changes: what differs from the demo on one machine, with artifacts and state in a folder: dotted key → value.
        variables: how the pipeline finds the cluster, in its environment.
        disturb: what happens to the cluster in mid-training, unless the demo is to be calm.
        work_left: what the cluster still has of the pipeline.
        refusal: what says that there can be no cluster.
    """
    parser = demo_parser(about, folder=folder, steps=400)
    parser.add_argument("--calm", action="store_true", help="nothing happens to the cluster")
    arguments = parser.parse_args()
    end_at_first_signal()
    memory_before, left = _shared_memory(), list[str]()
    place, folder = Path(tempfile.mkdtemp(prefix="headrace-", dir="/tmp")), arguments.folder.resolve()  # short: sockets lie below it
    try:
        with start(place) as cluster:
            trouble = None if arguments.calm else partial(disturb, cluster)
            try:
                code = run_pipeline(
                    folder,
                    steps=arguments.steps,
                    changes=changes(folder),
                    assignments=arguments.assignments,
                    variables=variables(cluster),
                    disturb=trouble,
                )
            finally:
                left += _once_there_was_time(lambda: work_left(cluster))
                print("\n  ".join(["left on the cluster:", *left]) if left else "nothing of it is left on the cluster", flush=True)
    except refusal as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        code = 130
    left += _left_over((place, folder), memory_before=memory_before)
    print("\n".join(["left over:", *left]) if left else "the cluster is down; no job, no process and no shared memory is left")
    return code or int(bool(left))


def demo_parser(about: str, *, folder: Path, steps: int) -> argparse.ArgumentParser:
    """Returns what all demos take: `--steps`, `--folder` and `--set`, with these defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps, help=f"of training; default: {steps}")
    parser.add_argument("--folder", type=Path, default=folder, help="for artifacts and state")
    parser.add_argument(
        "--set", dest="assignments", metavar="KEY=VALUE", action="append", default=[], help="override a key of the recipe; may be repeated"
    )
    return parser


def end_at_first_signal() -> None:
    """Ends this process at the first signal, as Ctrl-C does. The way down is bounded, and no further one interrupts it."""
    for number in _ENDING:
        signal.signal(number, _stop_once)


def _stop_once(number: int, frame: object) -> None:
    del number, frame
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def run_pipeline(
    folder: Path,
    *,
    steps: int,
    changes: Mapping[str, Any],
    assignments: Sequence[str] = (),
    variables: Mapping[str, str],
    disturb: Callable[[JobProgress], None] | None = None,
) -> int:
    """Runs the demo's recipe in `folder`, prints the last screen, and returns the pipeline's exit code.

    Args:
        folder: for artifacts and state; a project of its own, unless it lies in one.
        steps: of training.
        changes: dotted key → value, over the demo's recipe.
        assignments: `KEY=VALUE`, over those.
        variables: of the pipeline's environment, which has nothing of what the user's shell says of other clusters and services.
        disturb: called once, past half of the steps and the first commit.
    """
    storage = open_storage(str(folder / "data"))
    earlier = set(list_runs(storage))
    folder.mkdir(parents=True, exist_ok=True)
    recipe = shutil.copyfile(_RECIPE, folder / "demo.yaml")
    headrace = (str(Path(sys.executable).with_name("headrace")), "run", str(recipe), "--from", Stage.VALIDATE.value)
    values = (f"{key}={json.dumps(value)}" for key, value in {**_sizes(folder, steps=steps), **changes}.items())
    argv = [*headrace, *(word for assignment in (*values, *assignments) for word in ("--set", assignment))]
    with session(argv, environment={**_environment(folder / "state"), **variables}) as process:
        while disturb is not None and process.poll() is None:
            time.sleep(0.5)
            new = set(list_runs(storage)) - earlier
            training = _training(Run(storage, new.pop())) if new else None
            if training is not None and training.committed_step > 0 and training.step >= steps * _AT_SHARE:
                disturb(training)
                break
        code = process.wait()
    if code == 0:
        run_id = list_runs(storage)[0]
        print("\n".join(["", *last_screen(RunHandle(run_id=run_id, storage_root=storage.url, state_dir=str(folder / "state")))]))
    return code


@contextmanager
def session(argv: Sequence[str], *, environment: Mapping[str, str], to_stop_s: float = _TO_STOP_S) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a session of its own: Ctrl-C at the terminal is for this process, which passes one signal on.

    Args:
        argv: its command line.
        environment: all of it.
        to_stop_s: longest wait for it once it was asked to end.
    """
    process = subprocess.Popen(argv, cwd=_CHECKOUT, env=dict(environment), start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=to_stop_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment(state_dir: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_CLUSTERS)}
    isolate(environment, state_dir=state_dir)
    return environment


def _sizes(folder: Path, *, steps: int) -> dict[str, Any]:
    return {
        "storage.root": str(folder / "data"),
        "state": str(folder / "state"),
        "training.steps": steps,
        "training.schedule.decay_steps": steps * 3 // 5,
        "training.schedule.warmup_steps": steps // 10,
    }


def _training(run: Run) -> JobProgress | None:
    pointer = run.pointer(Stage.TRAIN)
    return job_progress(run.storage, pointer.key, now=time.time()) if pointer is not None else None


# ---- what is left ------------------------------------------------------------------------------------------------------


def _shared_memory() -> frozenset[Path]:
    """Returns the shared memory of this machine, to compare with later."""
    return frozenset(_SHARED_MEMORY.iterdir())


def _once_there_was_time(look: Callable[[], list[str]]) -> list[str]:
    """Returns what `look` still finds once there was time for it to end."""
    deadline = time.monotonic() + _TO_VANISH_S
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _left_over(folders: tuple[Path, ...], *, memory_before: frozenset[Path]) -> list[str]:
    """Returns processes that name one of the folders, and shared memory that nobody uses, once there was time for them to end."""
    return _once_there_was_time(
        lambda: [*_processes(folders), *(str(path) for path in _shared_memory() - memory_before if not _is_in_use(path))],
    )


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
