"""A gang's program without torch: steps that take a moment, commits every few, and faults on request.

    python -m tests.fakes.gang_job --spec FILE

`options`: steps, step_s, commit_every, later_step_s (seconds of a step after the first epoch; default: step_s), busy_s (seconds by
rank, of a step before the ranks meet), talk (whether every step prints a line), meet_in_part (whether ranks wait for each other where
their signs do not tell it, as in a backward pass), and `faults`, a list of {rank, step, kind, times}: kind is `raise`, `raise-late`, `kill`,
`exit:N`, `oom`, `segv`, `port`, `hang`, `stop`, `gil`, `deadlock`, `compile` (killed while it compiles an operator), or `echo` (answer to
another's end); it strikes in the first `times` epochs that reach the step (default 1). `compiles`: a step at which every rank compiles an
operator. `lasts`: an attempt, up to which ranks go on beyond the last step until `LiveJob.let_go`; those after it have a few steps left.
"""

import argparse
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from cluster.agent.preload import record_modules
from cluster.agent.pulse import own_pulse
from cluster.layout import ArtifactLayout
from cluster.storage import AlreadyExistsError, FileStorage, replace_local
from schemas.exit_code import ExitCode
from schemas.job import TaskSpec
from schemas.progress import MetricPoint, RankPhase, RankProgress

ENOUGH = "enough"
"""The file in the artifact's folder that ends a job that `lasts`."""


def main() -> None:
    """Runs one rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True)
    spec = TaskSpec.model_validate_json(parser.parse_args().spec.read_bytes())
    options = spec.job.options
    step_s = options.get("later_step_s", options["step_s"]) if spec.epoch else options["step_s"]
    rank, output = int(os.environ["RANK"]), Path(spec.output_dir)
    layout, storage = ArtifactLayout(output.name), FileStorage(output.parent)
    committed = max((int(name[5:13]) for name in storage.names(layout.commits)), default=-1)
    stop = _Flag()
    signal.signal(signal.SIGTERM, stop.set)
    print(f"rank {rank} of {os.environ['WORLD_SIZE']} starts epoch {spec.epoch} from {committed}", flush=True)
    total = max(options["steps"], committed + options["commit_every"]) if "lasts" in options else options["steps"]
    step, ending = max(0, committed), max(0, committed) >= total
    while not ending:
        step += 1
        own_pulse().begin_step(step)  # first, as training does: who is said to step has said in which step
        _progress(spec, rank, RankPhase.STEPPING, step=step - 1, committed=committed, total=total)
        if step == max(0, committed) + 1:
            record_modules()
        if options.get("talk"):
            print(f"epoch {spec.epoch} step {step}", flush=True)
        for fault in options.get("faults", ()):
            if fault["rank"] == rank and fault["step"] == step and strikes(output, fault, spec.epoch):
                strike(fault["kind"])
        if step == options.get("compiles"):
            _take_lock().unlink()
        busy_s = options.get("busy_s", {}).get(str(rank), step_s)
        time.sleep(busy_s)
        if not options.get("meet_in_part"):
            own_pulse().finish_part("forward_s", busy_s)
        lasts = spec.job.attempt <= options.get("lasts", -1) and not (output / ENOUGH).exists()
        wish = "stop" if stop.wanted else "last" if lasts else "go"
        wishes = _meet(output / "meetings" / str(spec.epoch) / str(step), rank=rank, wish=wish)
        stopping, ending = "stop" in wishes, step >= total and "last" not in wishes
        if options.get("meet_in_part"):
            own_pulse().finish_part("backward_s", busy_s)
        if rank == 0:
            point = MetricPoint(step=step, at=time.time(), epoch=spec.epoch, values={"loss": 1.0 / step})
            with (Path(spec.scratch_dir) / "metrics-r0000.jsonl").open("a") as file:
                file.write(point.model_dump_json() + "\n")
            if step % options["commit_every"] == 0 or ending or stopping:
                with contextlib.suppress(AlreadyExistsError):
                    storage.create_exclusive(layout.commit(step), json.dumps({"step": step, "epoch": spec.epoch}).encode())
        if step % options["commit_every"] == 0:
            committed = step
        if stopping:
            sys.exit(int(ExitCode.INTERRUPTED))
    _progress(spec, rank, RankPhase.FINISHED, step=step, committed=step, total=total)


def _meet(folder: Path, *, rank: int, wish: str) -> set[str]:
    """Waits for all ranks, for ever when one does not come: what a collective operation does. Returns what they wish."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{rank}-{wish}").touch()
    while len(present := os.listdir(folder)) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.002)
    return {name.partition("-")[2] for name in present}


def _take_lock() -> Path:
    """Waits for the lock under which torch compiles an operator, as torch does, and returns it, taken."""
    lock = Path(os.environ["TORCH_EXTENSIONS_DIR"], "fused", "lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with contextlib.suppress(FileExistsError):
            os.open(lock, os.O_CREAT | os.O_EXCL)  # stays open
            return lock
        time.sleep(0.01)


class _Flag:
    wanted = False

    def set(self, *_: object) -> None:
        self.wanted = True


def _progress(spec: TaskSpec, rank: int, phase: RankPhase, *, step: int, committed: int, total: int) -> None:
    own_pulse().enter(phase)
    progress = RankProgress(rank=rank, pid=os.getpid(), phase=phase, step=step, committed_step=committed, total_steps=total, at=time.time())
    replace_local(Path(spec.scratch_dir) / f"progress-{rank:06d}.json", progress.model_dump_json().encode())


def strikes(output: Path, fault: dict, epoch: int) -> bool:
    """Whether the fault strikes now: it does so in the first `times` epochs that reach it."""
    marks = output / "faults"
    marks.mkdir(exist_ok=True)
    name = f"{fault['rank']}-{fault['step']}"
    if len(list(marks.glob(f"{name}-*"))) >= fault.get("times", 1):
        return False
    (marks / f"{name}-{epoch}").touch()
    return True


def strike(kind: str) -> None:
    """Does what the fault says."""
    if kind == "raise-late":
        time.sleep(0.5)
    if kind in ("raise", "raise-late"):
        raise ValueError("the data ran out of luck")
    if kind == "compile":
        _take_lock()
    if kind in ("kill", "compile"):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "segv":
        ctypes.string_at(0)
    if kind == "oom":
        raise MemoryError
    if kind == "port":
        raise OSError(98, "Address already in use")
    if kind == "echo":
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711")
    if kind == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "gil":
        ctypes.PyDLL(None).sleep(3600)
    if kind == "deadlock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    sys.exit(int(kind.removeprefix("exit:")))


if __name__ == "__main__":
    main()
