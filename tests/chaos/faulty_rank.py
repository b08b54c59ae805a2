"""One rank of training to which the faults of its job's options happen: `python -m tests.chaos.faulty_rank --spec FILE`.

It is `tasks.train.job` with some functions wrapped, named in `PLACES`; what a fault does is in `_strike`. Faults count over all epochs of
the training: each strike leaves word (`tests.chaos.struck`) before it happens.
"""

import ctypes
import errno
import functools
import importlib
import json
import os
import resource
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.agent.pulse import own_pulse
from cluster.layout import ArtifactLayout
from tasks.entry import RankTask, rank_main
from tests.chaos import faulty_files
from tests.chaos.injector import ANY, Fault, Faults, Kind, Point
from tests.chaos.struck import Struck

if TYPE_CHECKING:
    from tasks.train.checkpoint.writer import CheckpointWriter
    from tasks.train.engine import Engine

PLACES: dict[Point, tuple[str, str, str]] = {
    Point.LOAD: ("tasks.train.checkpoint.reader", "CheckpointReader", "load"),
    Point.DATA: ("tasks.train.data", "TrainingBatches", "at"),
    Point.FORWARD: ("tasks.train.engine", "Engine", "loss"),
    Point.BACKWARD: ("tasks.train.engine", "Engine", "backward"),
    Point.REDUCE: ("tasks.train.gang", "Gang", "sum"),
    Point.STEP: ("tasks.train.engine", "Engine", "step"),
    Point.SAVE: ("tasks.train.checkpoint.writer", "CheckpointWriter", "begin"),
}
"""Point → module, class, method. `at` is given the step, `begin` the state."""

_PATIENCE_S = 60.0
"""Of a step that waits for a checkpoint or for another rank: they may be slow, and the rank gives signs of life meanwhile."""
_HEADROOM_BYTES = 64 << 20
_TOO_MUCH = 1 << 34


class Injector:
    """Carries out a plan in one rank."""

    def __init__(self, task: RankTask, faults: Faults, *, paced: bool) -> None:
        """Args: paced: a step begins only once this rank's part of a pending checkpoint is done: steps of milliseconds would outrun any disk."""
        self._paced = paced
        self._writer: CheckpointWriter | None = None
        self._engine: Engine | None = None
        self._task, self._faults = task, faults.faults
        self._struck = Struck(Path(task.spec.job.project_dir))
        self._step = ANY
        self._entered = False

    def install(self) -> None:
        """Wraps the functions at which something is to happen, and those that tell the step."""
        points = {fault.point for fault in self._faults if fault.kind is not Kind.FILES} | {Point.DATA, Point.SAVE}
        if any(fault.kind is Kind.FLIP for fault in self._faults):
            points.add(Point.FORWARD)  # where the engine shows itself
        for point in points - {Point.START}:
            module, owner, method = PLACES[point]
            self._wrap(getattr(importlib.import_module(module), owner), method, point)

    def reach(self, point: Point, *, step: int, after: bool = False) -> None:
        """Lets happen what is due here, on entry or `after` it. Returns when nothing was, or when a fault leaves the rank alive."""
        for number, fault in enumerate(self._faults):
            if fault.point is not point or after != (fault.kind is Kind.FLIP and point is Point.STEP) or not self._is_due(fault, step):
                continue
            if fault.rank != self._task.rank:
                self._come_late(number, fault)
            elif self._struck.take_turn(number, times=fault.times, epoch=self._task.spec.epoch):
                self._begin(number, fault)

    def _wrap(self, owner: type, method: str, point: Point) -> None:
        genuine: Callable[..., Any] = getattr(owner, method)

        @functools.wraps(genuine)
        def wrapped(this: Any, *args: Any, **options: Any) -> Any:
            if point is Point.DATA:
                self._step = args[0]
                if not self._entered:
                    self._entered = True
                    self._struck.enter(epoch=self._task.spec.epoch, rank=self._task.rank)
                self._await_checkpoint()
            if point is Point.SAVE:
                self._writer = this
            if point in (Point.FORWARD, Point.STEP):
                self._engine = this
            self.reach(point, step=args[0].step if point is Point.SAVE else self._step)
            result = genuine(this, *args, **options)
            if point is Point.STEP:
                self.reach(point, step=self._step, after=True)
            return self._spoilt(result) if point is Point.FORWARD else result

        setattr(owner, method, wrapped)

    def _await_checkpoint(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while self._paced and self._is_writing() and time.monotonic() < deadline:
            own_pulse().beat()
            time.sleep(0.002)

    def _is_writing(self) -> bool:
        if self._writer is None or self._writer.pending is None:
            return False
        step, _ = self._writer.pending
        state, committed_step = self._writer.word()
        return state.value == "writing" and committed_step < step

    def _is_due(self, fault: Fault, step: int) -> bool:
        if fault.kind in (*_SPOILING, Kind.FILES):
            return False  # they spoil what a call returns
        if fault.once_struck != ANY and not self._struck.struck_before(fault.once_struck, epoch=self._task.spec.epoch):
            return False
        if fault.kind is Kind.CORRUPT:
            return step >= fault.step and self._commit(fault.commit).exists()
        return fault.step in (ANY, step)

    def _come_late(self, number: int, fault: Fault) -> None:
        """Stays away until the victim has reached the point, however late, and then as long as the plan says."""
        if not fault.peers_wait_s or self._struck.struck_before(number, epoch=self._task.spec.epoch):
            return
        deadline = time.monotonic() + _PATIENCE_S
        while not self._struck.count(number) and time.monotonic() < deadline:
            own_pulse().beat()
            time.sleep(0.002)
        time.sleep(fault.peers_wait_s)

    def _begin(self, number: int, fault: Fault) -> None:
        if not fault.after_s:
            self._strike(number, fault)
            return

        def later() -> None:
            time.sleep(fault.after_s)
            self._strike(number, fault)

        threading.Thread(target=later, daemon=True).start()

    def _spoilt(self, loss: Any) -> Any:
        for number, fault in enumerate(self._faults):
            here = fault.kind in _SPOILING and fault.rank == self._task.rank and fault.step in (ANY, self._step)
            if here and self._struck.take_turn(number, times=fault.times, epoch=self._task.spec.epoch):
                return _SPOILING[fault.kind](loss)
        return loss

    def _strike(self, number: int, fault: Fault) -> None:
        match fault.kind:
            case Kind.PAUSE:
                self._struck.pause(number, most_s=fault.seconds)
            case Kind.HOLD:
                self._struck.pause(number, most_s=fault.seconds, meanwhile=own_pulse().beat)
            case Kind.SLOW:
                time.sleep(0.0 if self._struck.may_go(number) else fault.seconds)
            case Kind.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Kind.STOP:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Kind.SEGV:
                ctypes.string_at(0)
            case Kind.ABORT:
                os.abort()
            case Kind.HOLD_GIL:
                ctypes.PyDLL(None).sleep(int(fault.seconds))
            case Kind.OOM:
                _run_out_of_memory()
            case Kind.RAISE:
                raise RuntimeError(fault.message)
            case Kind.RESET:
                _reset_connections()
            case Kind.TAKE_PORT:
                self._port = socket.create_server((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
            case Kind.FLIP:
                assert self._engine is not None
                _flip(self._engine, fault.file)
            case Kind.CORRUPT:
                damage(self._target(fault), fault.damage)
                os.kill(os.getpid(), signal.SIGKILL)
            case _:
                raise AssertionError(f"{fault.kind} is no strike")

    def _commit(self, step: int) -> Path:
        layout = ArtifactLayout(self._task.output_dir.name)
        return self._task.output_dir.parent / layout.commit(step)

    def _target(self, fault: Fault) -> Path:
        if fault.file == "commit":
            return self._commit(fault.commit)
        return self._task.output_dir / json.loads(self._commit(fault.commit).read_bytes())["folder"] / fault.file


def damage(path: Path, how: str) -> None:
    """Damages a file in place, as disks and people do."""
    data = bytearray(path.read_bytes())
    match how:
        case "flip":
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "truncate":
            path.write_bytes(data[: len(data) // 2])
        case "empty":
            path.write_bytes(b"")
        case "remove":
            path.unlink()
        case _:
            raise AssertionError(how)


def _with_bad_gradient(loss: Any) -> Any:
    loss.register_hook(lambda gradient: gradient * float("nan"))
    return loss


_SPOILING: dict[Kind, Callable[[Any], Any]] = {
    Kind.NAN: lambda loss: loss * float("nan"),
    Kind.SPIKE: lambda loss: loss * 100.0,
    Kind.BAD_GRADIENT: _with_bad_gradient,
}
"""Kinds that spoil a micro-batch's loss, and how."""


def _flip(engine: "Engine", what: str) -> None:
    """Flips one bit in the middle of a weight, as a cosmic ray does. For ZeRO 1 and 2."""
    import torch

    tensor = engine.optimizer.single_partition_of_fp32_groups[0] if what == "master" else next(engine.module.parameters())
    words = tensor.detach().view(-1).view(torch.int32 if tensor.element_size() == 4 else torch.int16)
    words[words.numel() // 2] ^= 1 << 3


def _run_out_of_memory() -> None:
    import torch

    status = Path("/proc/self/statm").read_text().split()
    present = int(status[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + _HEADROOM_BYTES, resource.RLIM_INFINITY))
    torch.ones(_TOO_MUCH)


def _reset_connections() -> None:
    """Shuts down every connected TCP socket of this process: gloo's own, which no Python object holds."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as handle:
                if handle.family == socket.AF_INET:
                    handle.getpeername()  # a socket that listens has none
                    handle.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOTCONN):  # the listing's own descriptor, and what is not connected
                raise


def run(task: RankTask) -> None:
    """Trains, with faults."""
    from tasks.train.checkpoint import process
    from tasks.train.job import run as train

    faults = Faults.from_options(task.options["faults"])
    injector = Injector(task, faults, paced=bool(task.options["paced"]))
    injector.reach(Point.START, step=ANY)
    injector.install()
    if any(fault.kind is Kind.FILES for fault in faults.faults):
        faulty_files.install(faults, rank=task.rank, epoch=task.spec.epoch, struck=Struck(Path(task.spec.job.project_dir)))
        spec = Path(task.spec.scratch_dir) / "task.json"
        process.PROGRAM = ("-m", "tests.chaos.faulty_files", str(spec), str(task.rank))
    train(task)


if __name__ == "__main__":
    rank_main(run)
