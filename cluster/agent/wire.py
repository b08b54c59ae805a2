"""What the agent and its zygote say to each other: one JSON object per datagram of a Unix socket pair."""

import ctypes
import json
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

DATAGRAM_BYTES = 1 << 20
"""Most bytes of a message. Linux's default send buffer holds 200 kB; messages are environments and paths, a few kB."""


@dataclass(frozen=True)
class Fork:
    """Agent → zygote: fork a process that runs a module as `__main__`."""

    token: int
    """Comes back with the answer."""
    name: str
    """`rank 1`, `item 12`: what process viewers show."""
    module: str
    """The module."""
    argv: tuple[str, ...]
    """Its arguments."""
    env: dict[str, str]
    """Variables on top of the zygote's environment."""
    log: str
    """File that takes its standard output and error, appended."""
    cwd: str
    """Its working directory."""


@dataclass(frozen=True)
class Import:
    """Agent → zygote: import what a rank wrote down in this file, between other work."""

    file: str


@dataclass(frozen=True)
class Load:
    """Agent → zygote: load into memory what the processes to come would each load by themselves."""

    loader: str
    """`module:function` to call."""
    spec: str
    """Its argument: the file of a task spec."""


@dataclass(frozen=True)
class Ready:
    """Zygote → agent: the modules of its command line are imported."""


@dataclass(frozen=True)
class Imported:
    """Zygote → agent: the recorded modules are imported."""

    count: int


@dataclass(frozen=True)
class Forked:
    """Zygote → agent: the process runs."""

    token: int
    pid: int


@dataclass(frozen=True)
class Exited:
    """Zygote → agent: a process ended."""

    pid: int
    status: int
    """Exit code; negative: killed by that signal."""


Message = Fork | Import | Load | Ready | Imported | Forked | Exited
_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in (Fork, Import, Load, Ready, Imported, Forked, Exited)}


@dataclass
class Wire:
    """One end of the socket pair."""

    socket: socket.socket
    _closed: bool = field(default=False, init=False)

    def send(self, message: Message) -> None:
        """Sends a message. Raises OSError when the other end is gone."""
        self.socket.send(json.dumps([type(message).__name__, asdict(message)]).encode())

    def receive(self) -> Message | None:
        """Returns the next message, waiting for it; None when the other end is gone."""
        try:
            data = self.socket.recv(DATAGRAM_BYTES)
        except ConnectionResetError:
            return None
        if not data:
            return None
        name, fields = json.loads(data)
        return _KINDS[name](**{key: _frozen(value) for key, value in fields.items()})

    def close(self) -> None:
        """Closes this end."""
        self.socket.close()


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent ends, so that nothing is orphaned when the parent is killed.

    Linux's PR_SET_PDEATHSIG; it does nothing elsewhere. The parent may have died before the call, hence the look afterwards.
    It fires when the parent *thread* ends: only main threads may fork.

    Args:
        parent: pid that the parent had when it forked this process.
    """
    if sys.platform != "linux":
        return
    _prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def set_process_name(name: str) -> None:
    """Gives the calling process the name that `top` and `ps -o comm` show (at most 15 bytes). Nothing outside Linux."""
    if sys.platform == "linux":
        _prctl(_SET_NAME, ctypes.c_char_p(name.encode()[:15]))


_SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of linux/prctl.h."""
_SET_NAME = 15
"""PR_SET_NAME of linux/prctl.h."""


def _prctl(option: int, argument: int | ctypes.c_char_p) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
