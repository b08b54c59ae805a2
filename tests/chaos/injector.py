"""Failures as part of a test's text: `Faults().kill(rank=1, at_step=7).raises(rank=0, at_step=9)`.

A plan is data. It travels to the ranks in their job's options, and `tests.chaos.faulty_rank` carries it out there: real signals to real
processes, at a named point of a step. The product knows nothing of it. Steps are counted as training counts them: `at_step=7` strikes while
the update is made that follows seven others.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

ANY = -1
"""Any step, or any epoch."""


class Point(StrEnum):
    """Where in a rank's life a fault strikes."""

    START = "start"
    """The program begins; nothing is imported or agreed on yet."""
    LOAD = "load"
    """The newest checkpoint is read into the engine."""
    DATA = "data"
    """A step begins: its batches are asked for."""
    FORWARD = "forward"
    BACKWARD = "backward"
    REDUCE = "reduce"
    """The ranks' one all-reduce of a step, after the gradients and before the weights change."""
    STEP = "step"
    """The weights are updated; under ZeRO also a collective."""
    SAVE = "save"
    """A checkpoint of the state after `at_step` updates is begun."""


class Kind(StrEnum):
    """What a fault does to the rank, or through it."""

    KILL = "kill"
    STOP = "stop"
    SEGV = "segv"
    ABORT = "abort"
    HOLD_GIL = "hold gil"
    OOM = "oom"
    RAISE = "raise"
    NAN = "nan"
    SPIKE = "spike"
    BAD_GRADIENT = "bad gradient"
    FLIP = "flip"
    PAUSE = "pause"
    HOLD = "hold"
    SLOW = "slow"
    RESET = "reset"
    TAKE_PORT = "take port"
    CORRUPT = "corrupt"
    FILES = "files"


@dataclass(frozen=True)
class Fault:
    """One fault."""

    kind: Kind
    rank: int
    step: int = ANY
    point: Point = Point.DATA
    times: int = 1
    """It strikes so often in the whole training, over all epochs; 0: every time."""
    after_s: float = 0.0
    """Seconds from reaching the point to the strike, from a second thread: the rank is inside then."""
    peers_wait_s: float = 0.0
    """How long the other ranks stay away from the point once the victim reached it, so that it waits for them inside a collective."""
    once_struck: int = ANY
    """Only in an epoch after one in which the fault of this number struck."""
    message: str = ""
    """Of what is raised."""
    commit: int = ANY
    """Of `CORRUPT`: strikes only once this step is committed."""
    file: str = ""
    """Of `CORRUPT`: a file of that checkpoint, or `commit`. Of `FILES`: what a path must contain."""
    damage: str = ""
    """Of `CORRUPT`: flip, truncate, empty or remove. Of `FILES`: an errno's name (`EIO`, `ESTALE`), `sleep`, `kill` the process, `limit` the
    size of the file that is opened (RLIMIT_FSIZE: the kernel itself refuses), or `hide` the newest name of a listing."""
    call: str = ""
    """Of `FILES`: open, write, fsync, link, read or list."""
    seconds: float = 0.0
    """Of `FILES` with `sleep`, `SLOW`, `HOLD_GIL`, `PAUSE`, `HOLD`: how long, at most."""


@dataclass(frozen=True)
class Faults:
    """A plan, built fault by fault. Each call returns a longer one."""

    faults: tuple[Fault, ...] = ()

    def kill(self, *, rank: int, at_step: int, point: Point = Point.DATA, times: int = 1) -> "Faults":
        """SIGKILL on entering the point."""
        return self._with(Fault(Kind.KILL, rank, at_step, point, times))

    def kill_inside(self, *, rank: int, at_step: int, point: Point, after_s: float = 0.001, peers_wait_s: float = 0.0) -> "Faults":
        """SIGKILL within the point. With `peers_wait_s` the others come late, so that it surely waits in their collective."""
        return self._with(Fault(Kind.KILL, rank, at_step, point, after_s=after_s, peers_wait_s=peers_wait_s))

    def second_kill(self, *, rank: int, after_s: float, point: Point = Point.START) -> "Faults":
        """SIGKILL of a rank while the gang recovers from the fault before: so many seconds after it reached the point."""
        return self._with(Fault(Kind.KILL, rank, ANY, point, after_s=after_s, once_struck=len(self.faults) - 1))

    def pause(self, *, rank: int, at_step: int, point: Point = Point.DATA) -> "Faults":
        """Waits there for a minute, without a sign of life."""
        return self._with(Fault(Kind.PAUSE, rank, at_step, point, seconds=60.0))

    def hold(self, *, rank: int, at_step: int, point: Point = Point.DATA) -> "Faults":
        """Waits there until the test lets it go on (`LiveTraining.meanwhile`), a minute at most. It gives signs of life: this is no hang."""
        return self._with(Fault(Kind.HOLD, rank, at_step, point, seconds=60.0))

    def slow_steps(self, *, seconds: float, rank: int = 0) -> "Faults":
        """Every step takes so much longer, as long as steps of real models, until the test lets it go on (`Struck.let_go`)."""
        return self._with(Fault(Kind.SLOW, rank, times=0, seconds=seconds))

    def stop(self, *, rank: int, at_step: int, point: Point = Point.DATA) -> "Faults":
        """SIGSTOP: it neither ends nor goes on."""
        return self._with(Fault(Kind.STOP, rank, at_step, point))

    def hold_gil(self, *, rank: int, at_step: int, seconds: float = 600.0) -> "Faults":
        """C code that never gives the interpreter back: no thread of the rank runs any more, not even one that watches."""
        return self._with(Fault(Kind.HOLD_GIL, rank, at_step, seconds=seconds))

    def segv(self, *, rank: int, at_step: int, point: Point = Point.FORWARD) -> "Faults":
        """A read through a null pointer."""
        return self._with(Fault(Kind.SEGV, rank, at_step, point))

    def abort(self, *, rank: int, at_step: int, point: Point = Point.BACKWARD) -> "Faults":
        """`abort(3)`, as a failed assertion of C++ code."""
        return self._with(Fault(Kind.ABORT, rank, at_step, point))

    def oom(self, *, rank: int, at_step: int, times: int = 0) -> "Faults":
        """An allocation that the kernel refuses (RLIMIT_AS)."""
        return self._with(Fault(Kind.OOM, rank, at_step, times=times))

    def raises(self, *, rank: int, at_step: int, message: str, point: Point = Point.DATA, times: int = 1) -> "Faults":
        """An exception, as from user code."""
        return self._with(Fault(Kind.RAISE, rank, at_step, point, times, message=message))

    def nan(self, *, rank: int, at_step: int, times: int = 1) -> "Faults":
        """A loss that is no number, in the first micro-batch of the step."""
        return self._with(Fault(Kind.NAN, rank, at_step, Point.FORWARD, times))

    def spike(self, *, rank: int, at_step: int, times: int = 1) -> "Faults":
        """A loss a hundred times the true one, in the first micro-batch of the step."""
        return self._with(Fault(Kind.SPIKE, rank, at_step, Point.FORWARD, times))

    def bad_gradient(self, *, rank: int, at_step: int, times: int = 1) -> "Faults":
        """Gradients that are no numbers, of a loss that is, in the first micro-batch of the step."""
        return self._with(Fault(Kind.BAD_GRADIENT, rank, at_step, Point.FORWARD, times))

    def flip(self, *, rank: int, at_step: int, what: str, point: Point = Point.DATA) -> "Faults":
        """A mantissa bit of a weight (`what`: master, parameter), before its use; at the point `STEP` right after the update."""
        return self._with(Fault(Kind.FLIP, rank, at_step, point, file=what))

    def reset_connections(self, *, rank: int, at_step: int, point: Point = Point.DATA) -> "Faults":
        """All TCP connections of the rank are shut down under it."""
        return self._with(Fault(Kind.RESET, rank, at_step, point))

    def take_port(self, *, times: int = 1) -> "Faults":
        """Somebody listens on the rendezvous port before rank 0 does."""
        return self._with(Fault(Kind.TAKE_PORT, 0, ANY, Point.START, times))

    def corrupt(self, *, file: str, damage: str, of_step: int, at_step: int) -> "Faults":
        """Damages a file of a committed checkpoint (`commit`: its record), then SIGKILL: the next start must find it.

        Strikes at `at_step` or at the first step after it by which `of_step` is committed.
        """
        return self._with(Fault(Kind.CORRUPT, 0, at_step, Point.DATA, commit=of_step, file=file, damage=damage))

    def enospc(self, *, rank: int, path: str, times: int = 1) -> "Faults":
        """The disk is full for writes to paths that contain `path`."""
        return self.files(rank=rank, path=path, call="write", damage="ENOSPC", times=times)

    def slow_fs(self, *, rank: int, path: str, seconds: float, call: str = "write", times: int = 1) -> "Faults":
        """A shared file system that stalls."""
        return self._with(Fault(Kind.FILES, rank, times=times, file=path, call=call, damage="sleep", seconds=seconds))

    def files(self, *, rank: int, path: str, call: str, damage: str, times: int = 1, once_struck: int = ANY) -> "Faults":
        """A call on paths that contain `path` goes wrong: see `Fault.call` and `Fault.damage`."""
        return self._with(Fault(Kind.FILES, rank, times=times, once_struck=once_struck, file=path, call=call, damage=damage))

    def to_options(self) -> list[dict[str, Any]]:
        """Returns the plan as JSON data."""
        return [{name: value for name, value in asdict(fault).items() if value != _DEFAULTS.get(name)} for fault in self.faults]

    @classmethod
    def from_options(cls, options: Iterable[Any]) -> "Faults":
        """Returns the plan that `to_options` wrote."""
        return cls(tuple(_parsed(dict(values)) for values in options))

    def _with(self, fault: Fault) -> "Faults":
        return replace(self, faults=(*self.faults, fault))


def _parsed(values: dict[str, Any]) -> Fault:
    return Fault(**{**values, "kind": Kind(values["kind"]), "point": Point(values.get("point", Point.DATA))})


_DEFAULTS = {name: value for name, value in asdict(Fault(Kind.KILL, 0)).items() if name not in ("kind", "rank")}
