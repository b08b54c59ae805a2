"""Which process is which: identities that survive recycled process ids, and facts about processes of this machine.

Knows Linux's `/proc`; elsewhere psutil's answers stand in.
"""

import functools
import os
import pwd
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_START_FIELD = 21
"""Index of `starttime` in `/proc/PID/stat` (proc(5) counts from 1, and calls it 22)."""


@dataclass(frozen=True)
class ProcessId:
    """A process, for ever: a recycled pid has another start, another machine another table."""

    host: str
    """Name of its host, for people: two hosts may share one."""
    table: str
    """Which process table the pid belongs to: boot id and pid namespace. Equal tables can ask about each other's pids."""
    pid: int
    """The pid in that table."""
    started: float
    """When it started, in seconds after the machine's boot: a clock that is set does not move it."""


@functools.cache
def process_table() -> str:
    """Returns what tells this process table from every other: boot id and pid namespace; the host's name where Linux does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def started_at(pid: int) -> float | None:
    """Returns when a process of this machine started, in seconds after boot, or None when none is to be seen or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None if Path("/proc/self/stat").exists() else _started_by_psutil(pid)
    fields = stat.rpartition(")")[2].split()  # the name may hold spaces and brackets; what follows it starts at field 3
    if fields[0] in ("Z", "X", "x"):
        return None
    return int(fields[_START_FIELD - 2]) / os.sysconf("SC_CLK_TCK")


def _started_by_psutil(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time() - psutil.boot_time(), 2)
    except psutil.NoSuchProcess:
        return None


def user_name() -> str:
    """Returns the name of the calling process's user, or the number of one without a name, as in containers.

    The system is asked, not the environment: `su` and `sudo` may leave USER as it was.
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def owner_here() -> str:
    """Returns `user@host` of the calling process: what leases, runs, records and pins say of who made them."""
    return f"{user_name()}@{socket.gethostname()}"


def is_own(owner: str) -> bool:
    """Whether `owner` (`user@host`) is the user of the calling process. Users are told apart by name: a cluster's hosts share them."""
    return owner.rpartition("@")[0] == user_name()


def this_process() -> ProcessId:
    """Returns the identity of the calling process."""
    started = started_at(os.getpid())
    assert started is not None
    return ProcessId(host=socket.gethostname(), table=process_table(), pid=os.getpid(), started=started)


def is_dead(process: ProcessId) -> bool:
    """Whether the process is known to have ended. False also when nothing can be known: of another machine, or hidden from this user."""
    if process.table != process_table():
        return False
    started = started_at(process.pid)
    return not _is_hidden(process.pid) if started is None else started != process.started


def _is_hidden(pid: int) -> bool:
    """Whether a process is there that `/proc` does not show: mounted with `hidepid`, it shows everybody their own only."""
    try:
        Path(f"/proc/{pid}/stat").read_text()
    except PermissionError:
        return True
    except (FileNotFoundError, ProcessLookupError):
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        except ProcessLookupError:
            return False
    return False


def wait_dead(process: ProcessId, *, timeout_s: float) -> bool:
    """Waits until a process of this machine has ended; returns whether it has."""
    deadline = time.monotonic() + timeout_s
    while not is_dead(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
