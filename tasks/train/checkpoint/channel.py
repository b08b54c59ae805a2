"""What a rank and its writer process say to each other: JSON lines over a socket pair. Imports nothing heavy."""

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Describe:
    """Rank → writer, first: what is the same for all checkpoints of this start."""

    artifact_dir: str
    """The artifact's folder."""
    epoch: int
    """This start."""
    rank: int
    """The rank."""
    index: dict[str, Any]
    """A `RankIndex` as plain data, but for `rng`."""
    lead: dict[str, Any] | None
    """A `committer.Lead` as plain data, for the one writer that commits; None for the others."""
    local_dir: str | None = None
    """The artifact's folder on this node's own disk; None: there is no such tier."""


@dataclass(frozen=True)
class Local:
    """What a checkpoint of the node-local tier needs beyond the fragments."""

    state: dict[str, Any]
    """The whole `TrainingState` as plain data."""
    keep_from: int
    """Earlier steps are of no use any more."""


@dataclass(frozen=True)
class Forget:
    """Rank → writer: training is over, nothing of the node-local tier is wanted."""

    step: int


@dataclass(frozen=True)
class Write:
    """Rank → writer: the buffer holds a snapshot; make it durable."""

    step: int
    folder: str
    """Where to, relative to the artifact."""
    rng: dict[str, Any]
    """Of the rank's index."""
    local: "Local | None" = None
    """What makes it one of the node-local tier; None: it goes to shared storage."""


@dataclass(frozen=True)
class Commit:
    """Rank 0 → its writer: every rank's share is durable; make the checkpoint true."""

    step: int
    folder: str
    """Where it lies, relative to the artifact."""
    state: dict[str, Any]
    """The `TrainingState` as plain data, but for `parameters`."""
    files: list[dict[str, Any]]
    """Entries of all ranks' files."""


@dataclass(frozen=True)
class Discard:
    """Rank 0 → its writer: somebody's share could not be written; remove what there is."""

    step: int
    folder: str
    """Where it lies, relative to the artifact."""


@dataclass(frozen=True)
class Written:
    """Writer → rank: the share is durable."""

    step: int
    files: list[dict[str, Any]]
    """Entries of the rank's data and of its index, in this order."""
    seconds: float
    """How long it took."""


@dataclass(frozen=True)
class Committed:
    """Writer → rank 0: the checkpoint is committed."""

    step: int


@dataclass(frozen=True)
class Failed:
    """Writer → rank: the share could not be written, or the checkpoint not be committed."""

    step: int
    reason: str
    """What the file system said, with the path."""


Request = Describe | Write | Commit | Discard | Forget
Reply = Written | Committed | Failed
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Describe, Write, Commit, Discard, Forget, Written, Committed, Failed)}


class Channel:
    """One end of the socket pair."""

    def __init__(self, end: socket.socket) -> None:
        """Args: end: a stream socket."""
        self._socket = end
        self._received = b""

    def send(self, message: Request | Reply) -> None:
        """Sends a message. Raises OSError when the other end is gone."""
        self._socket.sendall(json.dumps([type(message).__name__, asdict(message)]).encode() + b"\n")

    def receive(self) -> Iterator[Any]:
        """Yields messages as they come, until the other end is gone."""
        while self._fill(flags=0):
            yield from self._take()

    def poll(self) -> tuple[list[Any], bool]:
        """Returns the messages that are there, and whether the other end still is. Never waits."""
        alive = True
        with contextlib.suppress(BlockingIOError):
            while alive := self._fill(flags=socket.MSG_DONTWAIT):
                continue
        return list(self._take()), alive

    def finish(self) -> None:
        """Tells the other end that nothing more will come."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Closes this end."""
        self._socket.close()

    def _fill(self, *, flags: int) -> bool:
        """Reads what there is; returns False when the other end is gone."""
        try:
            data = self._socket.recv(_CHUNK_BYTES, flags)
        except ConnectionResetError:
            return False
        self._received += data
        return bool(data)

    def _take(self) -> Iterator[Any]:
        """Yields the messages that are here whole."""
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            kind, fields = json.loads(line)
            if fields.get("local") is not None:
                fields["local"] = Local(**fields["local"])
            yield _KINDS[kind](**fields)
