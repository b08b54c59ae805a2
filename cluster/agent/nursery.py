"""The agent's side of the zygote: starts compute processes, tells how they ended, and leaves none behind."""

import contextlib
import itertools
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.agent.wire import Exited, Fork, Forked, Import, Imported, Load, Wire
from cluster.process import started_at

logger = logging.getLogger(__name__)

_ZYGOTE = "cluster.agent.zygote"
_KEEPER = "cluster.agent.standby"
_START_S = 300.0
"""Longest wait for a zygote to import what it preloads: cold, on a slow shared file system, it takes minutes."""
_VANISH_S = 10.0
"""Longest wait for killed processes to leave the process table."""


@dataclass(frozen=True)
class Program:
    """A compute process to start."""

    name: str
    """`rank 1`, `item 12`: what process viewers show."""
    module: str
    """The module that runs as `__main__`."""
    argv: tuple[str, ...]
    """Its arguments."""
    env: Mapping[str, str]
    """Variables on top of the node's compute environment."""
    log: Path
    """File that takes its output."""


@dataclass(frozen=True)
class End:
    """A compute process ended."""

    pid: int
    """It."""
    status: int
    """Exit code; negative: killed by that signal."""
    at: float
    """When the agent saw it, seconds since the Unix epoch."""
    zygote_died: bool = False
    """Whether it went down with its zygote: its true status is not known."""


class Nursery:
    """Starts processes through a zygote, which is started when first needed and again when it died. For the main thread only."""

    def __init__(self, *, preload: tuple[str, ...], env: Mapping[str, str], cwd: str, log: Path, standby: bool = False) -> None:
        """Keeps what a zygote needs.

        Args:
            preload: modules the zygote imports first.
            env: its whole environment.
            cwd: working directory.
            log: its own output.
            standby: whether processes that wait are kept (`cluster.agent.standby`) instead of a process that forks.
        """
        self._preload, self._cwd, self._log, self._standby = preload, cwd, log, standby
        self.env: Mapping[str, str] = dict(env)
        """What every process starts with."""
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: Wire | None = None
        self._tokens = itertools.count()
        self._ended: list[End] = []
        self._recorded: Path | None = None
        self._is_loaded = False
        self.running: dict[int, float] = {}
        """pid → start (seconds after boot) of the processes that run."""

    def start(self, program: Program) -> int:
        """Starts a process and returns its pid. A zygote that died is replaced, once."""
        request = Fork(
            token=next(self._tokens),
            name=program.name,
            module=program.module,
            argv=program.argv,
            env=dict(program.env),
            log=str(program.log),
            cwd=self._cwd,
        )
        for _ in range(2):
            wire = self._connected()
            try:
                wire.send(request)
            except OSError:
                self._bury()
                continue
            pid = self._answer(request.token)
            if pid is not None:
                self.running[pid] = started_at(pid) or 0.0
                return pid
        raise RuntimeError(f"the zygote ended twice while starting {program.module}; its output: {self._log}")

    def wait(self, timeout_s: float) -> tuple[End, ...]:
        """Returns the processes that ended, waiting at most `timeout_s` for the first."""
        deadline = time.monotonic() + timeout_s
        while not self._ended and self._wire is not None:
            if not self._readable(max(0.0, deadline - time.monotonic())):
                break
            self._take()
        while self._wire is not None and self._readable(0.0):
            self._take()
        if self._wire is None and not self._ended:
            time.sleep(max(0.0, deadline - time.monotonic()))
        ended, self._ended = tuple(self._ended), []
        return ended

    def signal(self, number: signal.Signals, *, pids: Iterable[int] | None = None) -> None:
        """Sends a signal to the running processes (by default all); SIGKILL reaches their whole process groups."""
        for pid in tuple(self.running if pids is None else pids):
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    _kill_group(pid)  # before the child has made its group there is only itself
                os.kill(pid, number)

    def kill_all(self) -> None:
        """Kills all running processes and waits until they are gone. Their ends are not reported any more."""
        self.signal(signal.SIGKILL)
        deadline = time.monotonic() + _VANISH_S
        while self.running and time.monotonic() < deadline:
            self.wait(0.1)
        if self.running:
            logger.error("processes %s do not end after SIGKILL; they hang in the kernel", sorted(self.running))
            self.running.clear()  # killed already: whoever starts next does not know them, though they may hold devices still

    def warm_up(self, recorded: Path) -> None:
        """Lets the zygote import what a rank wrote down in `recorded`; later zygotes too."""
        self._recorded = recorded
        if self._wire is not None:
            with contextlib.suppress(OSError):  # a dying zygote is noticed by `wait`
                self._wire.send(Import(file=str(recorded)))

    def load(self, loader: str, spec: Path) -> None:
        """Lets the zygote call a job's loader (`JobSpec.loader`) before it forks anything further. Only once: should the zygote die of it, the
        next one does without, and the programs load by themselves.
        """
        if self._is_loaded or not loader:
            return
        self._is_loaded = True
        with contextlib.suppress(OSError):  # a dying zygote is noticed by `start`
            self._connected().send(Load(loader=loader, spec=str(spec)))

    def close(self) -> None:
        """Kills what runs, and ends the zygote."""
        self.kill_all()
        self._bury()

    def _connected(self) -> Wire:
        if self._wire is not None:
            return self._wire
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [
            sys.executable,
            "-m",
            _KEEPER if self._standby else _ZYGOTE,
            f"--socket={theirs.fileno()}",
            f"--parent={os.getpid()}",
            "--preload",
            *self._preload,
        ]
        with theirs, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self.env, cwd=self._cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(theirs.fileno(),)
            )
        self._wire = Wire(ours)
        if self._recorded is not None:
            self._wire.send(Import(file=str(self._recorded)))
        return self._wire

    def _answer(self, token: int) -> int | None:
        """Waits for the pid of a requested process; None when the zygote ended, or hangs in an import."""
        deadline = time.monotonic() + _START_S
        while self._wire is not None:
            if not self._readable(max(0.0, deadline - time.monotonic())):
                logger.error("the zygote has not answered for %g s and is killed", _START_S)
                self._bury()
                return None
            message = self._take()
            if isinstance(message, Forked) and message.token == token:
                return message.pid
        return None

    def _readable(self, timeout_s: float) -> bool:
        assert self._wire is not None
        return bool(select.select([self._wire.socket], [], [], timeout_s)[0])

    def _take(self) -> object:
        assert self._wire is not None
        message = self._wire.receive()
        if message is None:
            self._bury()
        elif isinstance(message, Exited):
            _kill_group(message.pid)  # what it started goes with it
            if self.running.pop(message.pid, None) is not None:
                self._ended.append(End(pid=message.pid, status=message.status, at=time.time()))
        elif isinstance(message, Imported):
            logger.info("zygote imported %d modules that the first rank wrote down", message.count)
        return message

    def _bury(self) -> None:
        """Takes leave of a zygote that died or shall die. Its children die with it (PR_SET_PDEATHSIG); this waits until they have."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        deadline = time.monotonic() + _VANISH_S
        self.signal(signal.SIGKILL)
        for pid, started in self.running.items():
            while started_at(pid) == started and time.monotonic() < deadline:
                time.sleep(0.005)
            self._ended.append(End(pid=pid, status=-signal.SIGKILL, at=time.time(), zygote_died=True))
        self.running.clear()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
