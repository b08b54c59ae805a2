"""The zygote: a single-threaded process that imports what ranks need and forks them. It never computes, and never starts a thread.

    python -m cluster.agent.zygote --socket FD --parent PID [--preload MODULE …]

A forked child becomes a fresh program: own process group, own log, default signal handlers, `runpy` of its module as `__main__`.
What must not happen here, and why: one tensor operation before the fork hung the child; a parent that had run `deepspeed.initialize`
made its child crash. Importing is safe, and so is a job's own loader (`JobSpec.loader`), which neither computes nor starts a thread.
"""

import argparse
import gc
import logging
import os
import selectors
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.agent.preload import import_modules, load_ahead, recorded_modules
from cluster.agent.program import PROGRAMS_SIGNALS, become, ended_children, run_program
from cluster.agent.wire import Exited, Fork, Forked, Import, Imported, Load, Ready, Wire, die_with_parent

logger = logging.getLogger(__name__)


class Zygote:
    """The loop between the agent's socket and the ends of children."""

    def __init__(self, wire: Wire) -> None:
        """Args: wire: to the agent."""
        self._wire = wire
        self._warming: Iterator[str] | None = None
        self._warmed = 0
        self._selector = selectors.DefaultSelector()
        self._child_ended, self._on_child_end = socket.socketpair()
        self._on_child_end.setblocking(False)
        self._child_ended.setblocking(False)
        self._selector.register(wire.socket, selectors.EVENT_READ)
        self._selector.register(self._child_ended, selectors.EVENT_READ)

    def serve(self) -> Fork | None:
        """Serves until the agent is gone, then returns None. In every forked child it returns what the child shall run."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._on_child_end.fileno(), warn_on_full_buffer=False)
        self._wire.send(Ready())
        while True:
            ready = {key.fd for key, _ in self._selector.select(0 if self._warming else None)}
            if self._child_ended.fileno() in ready:
                self._child_ended.recv(4096)
                self._report_ends()
            if self._wire.socket.fileno() in ready:
                message = self._wire.receive()
                if message is None:
                    return None
                if isinstance(message, Import):
                    self._warming, self._warmed = import_modules(recorded_modules(Path(message.file))), 0
                elif isinstance(message, Load):
                    load_ahead(message.loader, Path(message.spec))
                    _settle()
                elif isinstance(message, Fork) and self._fork(message):
                    return message
            elif self._warming:
                self._warm_one()

    def _fork(self, request: Fork) -> bool:
        """Forks; returns whether this is the child. A signal to the child waits until it listens; else the zygote's deaf ear would lose it."""
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, PROGRAMS_SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._become(request, parent=parent)
            return True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PROGRAMS_SIGNALS)
        self._wire.send(Forked(token=request.token, pid=pid))
        return False

    def _become(self, request: Fork, *, parent: int) -> None:
        """Turns the fork into a process of its own."""
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for end in (self._wire.socket, self._child_ended, self._on_child_end):
            end.close()
        become(request)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PROGRAMS_SIGNALS)

    def _report_ends(self) -> None:
        for pid, status in ended_children():
            self._wire.send(Exited(pid=pid, status=status))

    def _warm_one(self) -> None:
        """Imports one recorded module; between two, the agent and ends of children are served."""
        assert self._warming is not None
        if next(self._warming, None) is not None:
            self._warmed += 1
            return
        self._warming = None
        _settle()
        self._wire.send(Imported(count=self._warmed))


def _settle() -> None:
    """Keeps later forks cheap: garbage collection leaves shared pages alone. Says when an import started threads: forked ranks lack them."""
    gc.collect()
    gc.freeze()
    tasks = Path("/proc/self/task")
    if tasks.exists() and (count := len(os.listdir(tasks))) > 1:
        logger.info("imports started %d threads in the zygote; they do not exist in forked ranks", count - 1)


def main() -> None:
    """Serves as a zygote; in forked children, runs their program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--preload", nargs="*", default=[])
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    for number in PROGRAMS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # schedulers send these to every process of a job; the agent decides when ranks stop
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for _ in import_modules(tuple(arguments.preload)):
        pass
    _settle()
    request = Zygote(Wire(socket.socket(fileno=arguments.socket))).serve()
    if request is not None:
        run_program(request)


if __name__ == "__main__":
    main()
