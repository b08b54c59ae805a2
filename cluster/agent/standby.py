"""Spare processes instead of forks, for devices whose libraries do not survive a fork: each has imported what a rank needs, and waits.

    python -m cluster.agent.standby --socket FD --parent PID [--preload MODULE …]

The *keeper* speaks to the agent as a zygote does (`cluster.agent.wire`). It imports nothing: for every local rank it keeps one *spare*, a
process of this same module, which turns into the rank when one is wanted. The next spare is started once ranks are at work, when what
they imported is known and nobody waits. A rank for which there is no spare yet starts as any program does.
"""

import argparse
import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from cluster.agent.preload import import_modules, recorded_modules
from cluster.agent.program import PROGRAMS_SIGNALS, become, ended_children, run_program
from cluster.agent.wire import Exited, Fork, Forked, Import, Imported, Ready, Wire, die_with_parent
from cluster.environment import LOCAL_RANK

logger = logging.getLogger(__name__)


@dataclass
class Spare:
    """A process that waits."""

    pid: int
    wire: Wire
    slot: int
    """The local rank that it will be."""
    request: Fork | None = None
    """What it was asked to run."""
    answered: bool = False
    """Whether the agent knows that it runs."""
    is_second: bool = False
    """Whether it was asked because another was lost."""
    is_lost: bool = False
    """Whether it ended before it ran what it was asked to; another does now."""


class Keeper:
    """The loop between the agent, the spares, and the ends of both spares and ranks."""

    def __init__(self, wire: Wire, *, preload: tuple[str, ...]) -> None:
        """Args: wire: to the agent. preload: modules that every spare imports first."""
        self._wire, self._preload = wire, preload
        self._waiting: dict[int, Spare] = {}
        """Slot → its spare."""
        self._asked: dict[int, Spare] = {}
        """pid → what was a spare, and is, or is about to be, a rank."""
        self._slots: set[int] = set()
        """Local ranks that there have been."""
        self._selector = selectors.DefaultSelector()
        self._child_ended, self._on_child_end = socket.socketpair()
        for end in (self._child_ended, self._on_child_end):
            end.setblocking(False)

    def serve(self) -> None:
        """Serves until the agent is gone. What it has started dies with it."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._on_child_end.fileno(), warn_on_full_buffer=False)
        for end in (self._wire.socket, self._child_ended):
            self._selector.register(end, selectors.EVENT_READ)
        self._wire.send(Ready())
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._hear(key.data)
                elif key.fileobj is self._child_ended:
                    self._child_ended.recv(4096)
                    self._report_ends()
                elif not self._obey():
                    return

    def _obey(self) -> bool:
        """Does what the agent asks; returns False when it is gone."""
        message = self._wire.receive()
        if isinstance(message, Import):
            for slot in self._slots - set(self._waiting):
                self._waiting[slot] = self._spawn(slot)
            for spare in self._waiting.values():
                with contextlib.suppress(OSError):  # it has ended, and is about to be heard of
                    spare.wire.send(message)
        elif isinstance(message, Fork):
            self._start(message)
        return message is not None

    def _start(self, request: Fork) -> None:
        """Has the local rank's spare begin. One that has ended unheard is made up for by a new process."""
        slot = int(request.env.get(LOCAL_RANK, 0))
        self._slots.add(slot)
        spare = self._waiting.pop(slot, None) or self._spawn(slot)
        try:
            spare.wire.send(request)
        except OSError:
            spare = self._spawn(slot)
            spare.wire.send(request)
        self._ask(spare, request)

    def _ask(self, spare: Spare, request: Fork) -> None:
        """Notes what a spare was asked to run."""
        spare.request = request
        self._asked[spare.pid] = spare

    def _ask_another(self, lost: Spare, request: Fork) -> None:
        """Has a new process begin what was sent to one that was ending: until its socket is torn down, sending succeeds."""
        logger.warning("the spare process of local rank %d ended before it ran %s, which another begins", lost.slot, request.name)
        lost.is_lost = True
        self._asked.pop(lost.pid, None)
        another = self._spawn(lost.slot)
        another.is_second = True
        with contextlib.suppress(OSError):  # it has ended, and is heard of
            another.wire.send(request)
        self._ask(another, request)

    def _spawn(self, slot: int) -> Spare:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own = (f"--spare={theirs.fileno()}", f"--parent={os.getpid()}", "--preload", *self._preload)
        with theirs:
            process = subprocess.Popen((sys.executable, "-m", "cluster.agent.standby", *own), stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),))
            process.returncode = 0  # its end is heard of by `_report_ends`, not by this object
        spare = Spare(process.pid, Wire(ours), slot)
        self._selector.register(ours, selectors.EVENT_READ, spare)
        return spare

    def _hear(self, spare: Spare) -> None:
        """Takes a spare's word: it runs now, has imported what was recorded, or is gone. Nothing, when its end was heard of a moment ago."""
        if spare.answered or spare.is_lost:
            return
        message = spare.wire.receive()
        if isinstance(message, Imported):
            if spare.slot == min(self._slots):  # the agent wants to hear it once
                self._wire.send(message)
            return
        self._selector.unregister(spare.wire.socket)
        spare.wire.close()
        if spare.request is not None and message is None and not spare.is_second:  # once: no process may be able to begin this
            self._ask_another(spare, spare.request)
        elif spare.request is not None:
            self._wire.send(Forked(token=spare.request.token, pid=spare.pid))
            spare.answered = True
        elif self._waiting.get(spare.slot) is spare:
            logger.warning("the spare process of local rank %d ended before its time", spare.slot)
            del self._waiting[spare.slot]

    def _report_ends(self) -> None:
        """Tells of ranks that have ended; of each after the word that it runs."""
        for pid, status in ended_children():
            spare = self._asked.pop(pid, None)
            if spare is None:
                continue
            while not (spare.answered or spare.is_lost):
                self._hear(spare)
            if spare.answered:
                self._wire.send(Exited(pid=pid, status=status))


def wait_for_request(wire: Wire, preload: tuple[str, ...]) -> Fork | None:
    """Imports, and waits for what to run; between two imports a request is heard. Returns None when the keeper is gone."""
    recorded = False
    modules: Iterator[str] | None = import_modules(preload)
    count = 0
    with selectors.DefaultSelector() as selector:
        selector.register(wire.socket, selectors.EVENT_READ)
        while True:
            if selector.select(0 if modules else None):
                message = wire.receive()
                if isinstance(message, Import):
                    modules, recorded = chain(modules or (), import_modules(recorded_modules(Path(message.file)))), True
                else:
                    return message if isinstance(message, Fork) else None
            elif modules is not None:
                if next(modules, None) is not None:
                    count += 1
                    continue
                modules = None
                if recorded:
                    wire.send(Imported(count=count))


def _wait_as_spare(wire: Wire, preload: tuple[str, ...]) -> None:
    """Becomes the program that is asked for. Nobody knows this process before it listens to signals, so none of them is lost."""
    request = wait_for_request(wire, preload)
    if request is None:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, PROGRAMS_SIGNALS)
    become(request)
    wire.send(Forked(token=request.token, pid=os.getpid()))
    wire.close()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PROGRAMS_SIGNALS)
    run_program(request)


def main() -> None:
    """Serves as a keeper, or waits as one of its spares and then runs its program."""
    parser = argparse.ArgumentParser(description=__doc__)
    end = parser.add_mutually_exclusive_group(required=True)
    end.add_argument("--socket", type=int)
    end.add_argument("--spare", type=int)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--preload", nargs="*", default=[])
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    for number in PROGRAMS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    preload = tuple(arguments.preload)
    if arguments.spare is None:
        Keeper(Wire(socket.socket(fileno=arguments.socket)), preload=preload).serve()
    else:
        _wait_as_spare(Wire(socket.socket(fileno=arguments.spare)), preload)


if __name__ == "__main__":
    main()
