"""The rank's side of its writer process: starts it, speaks to it without ever waiting, notices when it is gone."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from cluster.environment import checkout
from tasks.train.checkpoint.channel import Channel, Describe, Reply, Request
from tasks.train.checkpoint.snapshot import SharedBuffer

logger = logging.getLogger(__name__)

PROGRAM: tuple[str, ...] = ("-m", "tasks.train.checkpoint.stream")
"""What the interpreter runs as a writer."""


class WriterProcess:
    """One process of `tasks.train.checkpoint.stream`. For the main thread only: the process dies with the thread that started it."""

    def __init__(self, *, buffer: SharedBuffer, describe: Callable[[], Describe]) -> None:
        """Starts it.

        Args:
            buffer: what it shall share.
            describe: what it is told first; called in another thread, since it takes longer than a rank has time.
        """
        ours, theirs = socket.socketpair()
        numbers = {"socket": theirs.fileno(), "buffer": buffer.descriptor, "size": buffer.size, "parent": os.getpid()}
        command = [sys.executable, *PROGRAM, *(f"--{name}={number}" for name, number in numbers.items())]
        path = ":".join(dict.fromkeys([str(checkout()), *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]))
        with theirs:
            self._process = subprocess.Popen(
                command, env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), buffer.descriptor)
            )
        self._channel = Channel(ours)
        self._waiting: list[Request] | None = []
        self._lock = threading.Lock()
        self._introduction = threading.Thread(target=self._introduce, args=(describe,), name="writer's introduction", daemon=True)
        self._introduction.start()
        self.alive = True
        """False once it was found to be gone."""

    def send(self, request: Request) -> None:
        """Asks for something. A writer that is gone is noticed by `poll`."""
        with self._lock:
            if self._waiting is not None:  # it has not been introduced yet
                self._waiting.append(request)
                return
        self._send(request)

    def poll(self) -> list[Reply]:
        """Returns what it has said since the last call, without waiting; sets `alive`."""
        replies: list[Any]
        replies, self.alive = self._channel.poll()
        return replies

    def describe_end(self) -> str:
        """Returns how it ended, for people."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(timeout=1.0)
            return f"the writer process was killed by signal {-status}" if status < 0 else f"the writer process ended with status {status}"
        return "the writer process closed its connection"

    def kill(self) -> None:
        """Ends it at once. One that hangs in the kernel ends when its call returns, and does nothing more."""
        self.alive = False
        self._process.kill()
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)

    def close(self, *, timeout_s: float) -> None:
        """Lets it finish what it was asked for, then end; kills it when that takes too long."""
        self._introduction.join(timeout=timeout_s)
        self._channel.finish()
        try:
            self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            logger.warning("the checkpoint writer has not finished after %g s and is killed; what is committed stays", timeout_s)
        self.kill()

    def _introduce(self, describe: Callable[[], Describe]) -> None:
        try:
            description = describe()
        except BaseException:
            self._process.kill()  # noticed by `poll`: nobody waits for a writer that knows nothing
            raise
        self._send(description)
        while True:
            with self._lock:
                assert self._waiting is not None
                if not self._waiting:
                    self._waiting = None
                    return
                requests, self._waiting = self._waiting, []
            for request in requests:
                self._send(request)

    def _send(self, request: Request) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(request)
