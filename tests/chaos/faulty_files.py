"""A file system that refuses, stalls or lies, for one process: calls of the standard library on matching paths are answered by a plan.

Both processes that touch checkpoints are reached: the rank itself, and its writer, which runs as `python -m tests.chaos.faulty_files SPEC RANK …`
instead of `python -m tasks.train.checkpoint.stream …`.
"""

import errno
import functools
import os
import pathlib
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.job import TaskSpec
from tests.chaos.injector import ANY, Fault, Faults, Kind
from tests.chaos.struck import Struck

CALLS: dict[str, tuple[tuple[object, str], ...]] = {
    "open": ((os, "open"),),
    "write": ((os, "write"), (os, "pwrite")),
    "fsync": ((os, "fsync"),),
    "link": ((os, "link"),),
    "read": ((pathlib.Path, "read_bytes"),),
    "list": ((os, "listdir"),),
}
"""What a plan calls `call` → the functions that it stands for. Their first argument is a path or a descriptor."""

_LIMIT_BYTES = 4096


def install(faults: Faults, *, rank: int, epoch: int, struck: Struck) -> None:
    """Wraps what the plan has faults for."""
    mine = [(number, fault) for number, fault in enumerate(faults.faults) if fault.kind is Kind.FILES and fault.rank in (ANY, rank)]
    for call in {fault.call for _, fault in mine}:
        for owner, name in CALLS[call]:
            chosen = [(number, fault) for number, fault in mine if fault.call == call]
            setattr(owner, name, _wrapped(getattr(owner, name), chosen, epoch=epoch, struck=struck))


def _wrapped(genuine: Callable[..., Any], faults: list[tuple[int, Fault]], *, epoch: int, struck: Struck) -> Callable[..., Any]:
    @functools.wraps(genuine)
    def wrapped(target: Any, *args: Any, **options: Any) -> Any:
        path = str(Path(f"/proc/self/fd/{target}").readlink()) if isinstance(target, int) else os.fspath(target)
        hides = False
        for number, fault in faults:
            waits = fault.once_struck != ANY and not struck.struck_before(fault.once_struck, epoch=epoch)
            if fault.file in path and not waits and struck.take_turn(number, times=fault.times, epoch=epoch):
                hides |= fault.damage == "hide"
                _suffer(fault, path)
        result = genuine(target, *args, **options)
        return sorted(result)[:-1] if hides else result

    return wrapped


def _suffer(fault: Fault, path: str) -> None:
    match fault.damage:
        case "sleep":
            time.sleep(fault.seconds)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hide":  # an NFS client that lists a folder as it was a moment ago
            return
        case "limit":  # until the kernel refused once: that one file, in the middle
            resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT_BYTES, resource.RLIM_INFINITY))
            for owner, function in CALLS["write"]:
                setattr(owner, function, _lifting(getattr(owner, function)))
        case name:
            number = getattr(errno, name)
            raise OSError(number, os.strerror(number), path)


def _lifting(genuine: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a write that lifts the limit once it met it."""

    @functools.wraps(genuine)
    def wrapped(*args: Any) -> Any:
        try:
            return genuine(*args)
        except OSError as error:
            if error.errno == errno.EFBIG:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            raise

    return wrapped


def main() -> None:
    """Runs a rank's writer process, with the faults of its job."""
    spec = TaskSpec.model_validate_json(Path(sys.argv.pop(1)).read_bytes())
    rank = int(sys.argv.pop(1))
    install(Faults.from_options(spec.job.options["faults"]), rank=rank, epoch=spec.epoch, struck=Struck(Path(spec.job.project_dir)))

    from tasks.train.checkpoint.stream import main as write

    write()


if __name__ == "__main__":
    main()
