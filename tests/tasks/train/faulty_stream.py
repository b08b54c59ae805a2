"""The writer process on a machine where one call of the operating system fails while it writes one step.

FAULTY_CALL: `pwrite` (no space, halfway), `fsync` (I/O error), `kill` (the process is killed while it writes), `hang` (never returns),
`slow` (every write, of any step, takes long enough for some steps of training),
`crash` (the process and its rank end before file event number FAULTY_STEP below FAULTY_ROOT, counted over all steps).
FAULTY_STEP: the step.
"""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

from tasks.train.checkpoint import stream
from tests.fakes.file_events import Crash

CALL, STEP = os.environ["FAULTY_CALL"], f"step-{int(os.environ['FAULTY_STEP']):08d}"
genuine_pwrite, genuine_fsync = os.pwrite, os.fsync


def path_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def pwrite(descriptor: int, data: Any, offset: int) -> int:
    path = path_of(descriptor)
    if CALL == "slow":
        time.sleep(0.3)
    if STEP in path:
        match CALL:
            case "pwrite":
                genuine_pwrite(descriptor, data[:4096], offset)
                raise OSError(errno.ENOSPC, "No space left on device", path)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
    return genuine_pwrite(descriptor, data, offset)


def fsync(descriptor: int) -> None:
    path = path_of(descriptor)
    if CALL == "fsync" and STEP in path:
        raise OSError(errno.EIO, "Input/output error", path)
    genuine_fsync(descriptor)


os.pwrite, os.fsync = pwrite, fsync
if CALL == "crash":
    Crash(Path(os.environ["FAULTY_ROOT"]), at=int(os.environ["FAULTY_STEP"]), kills_parent=True).install()
stream.main()
