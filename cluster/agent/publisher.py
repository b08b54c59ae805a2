"""Carries what happens on a node to shared storage, in a thread of its own: a slow storage never delays a restart or a step.

Heartbeats, incidents, notices, and numbered segments of logs and metrics. It also listens: for the wish to cancel, and for the word that
somebody declared this attempt lost.
"""

import itertools
import logging
import os
import re
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from cluster.agent.scratch import EpochScratch
from cluster.agent.tail import SegmentKey, Tail
from cluster.agent.usage import UsageMeter
from cluster.environment import NODE_NAME
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.storage import AlreadyExistsError, Storage
from schemas.canonical import canonical_json
from schemas.errors import HeadraceError, UnreachableError
from schemas.progress import ArrayProgress, Heartbeat, Notice, RankProgress, RankPulse

logger = logging.getLogger(__name__)

HEARTBEAT_EVERY_S = 1.0
_KEEP_HEARTBEATS = 3
TICK_S = 0.2
_SEGMENT_BYTES = 1 << 20
_MOST_SEGMENT_PAUSE_S = 15.0
_LAST_TRIES_S = 60.0
_MOST_NOTICES = 1000
"""Of one node and attempt: each is an object of its own, and nobody reads more."""
_SEQUENCE = re.compile(r"-(\d+)\.json$")


@dataclass
class _Epoch:
    """An epoch whose files are followed."""

    scratch: EpochScratch
    started_at: float
    tails: dict[Path, Tail] = field(default_factory=dict)
    notices_taken: dict[int, int] = field(default_factory=dict)
    """Rank → bytes of its notices that are on their way."""
    next_at: float = 0.0
    ended: bool = False

    def watch(self, path: Path, key: SegmentKey, *, whole_lines: bool) -> None:
        """Follows a file from now on, also when it is found under its name no more."""
        self.tails.setdefault(path, Tail(path=path, key=key, whole_lines=whole_lines))


class Publisher:
    """Publishes for one agent. `start` and `stop` from the main thread; the rest from any."""

    def __init__(self, storage: Storage, *, artifact: ArtifactLayout, attempt: AttemptLayout, key: str, node_rank: int) -> None:
        """Args: storage: where to. artifact, attempt: what for. key: the attempt's. node_rank: this node's."""
        self._storage, self._artifact, self._attempt, self._key, self._node_rank = storage, artifact, attempt, key, node_rank
        self._epochs: dict[int, _Epoch] = {}
        self._objects: deque[tuple[str, bytes]] = deque()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._usage = UsageMeter()
        self._sequence = self._next_sequence()
        self._beat_at = 0.0
        self._newest_epoch = -1
        self._notice_numbers = itertools.count()
        self.items_done = 0
        """Finished items of an array; set by the main thread."""
        self.array: ArrayProgress | None = None
        """How far this node is with an array; set by the main thread."""
        self.pulses: tuple[RankPulse, ...] = ()
        """Last signs of life of this node's ranks; set by the main thread."""
        self.ranks: tuple[RankProgress, ...] = ()
        """What this node's ranks (or items) said of themselves when the last heartbeat was taken."""
        self.cancelled = threading.Event()
        """Set when `cancel.json` appears."""
        self.declared_lost = threading.Event()
        """Set when somebody else wrote this attempt's exit record."""
        self.failure: Exception | None = None
        """What ended the thread, if anything did: a defect of ours."""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def follow(self, epoch: int, scratch: EpochScratch) -> None:
        """Publishes the logs and metrics of an epoch from now on."""
        with self._lock:
            self._epochs[epoch] = _Epoch(scratch=scratch, started_at=time.monotonic())
            self._newest_epoch = max(self._newest_epoch, epoch)

    def publish(self, key: str, data: bytes) -> None:
        """Publishes an object soon, in the order of calls; it is retried until it is there."""
        self._objects.append((key, data))

    def notify(self, notice: Notice) -> None:
        """Publishes a notice soon. A job that says too much is heard no more; its logs go on."""
        number = next(self._notice_numbers)  # atomic: ranks' notices come from the publishing thread, the agent's own from the main one
        if number < _MOST_NOTICES:
            self.publish(self._attempt.notice(node_rank=self._node_rank, number=number), canonical_json(notice))
        elif number == _MOST_NOTICES:
            logger.warning("%d notices are enough; later ones are not published", _MOST_NOTICES)

    def finish(self, epoch: int) -> None:
        """Says that an epoch's processes have ended: the rest of its files is published, then they are removed."""
        with self._lock:
            self._epochs[epoch].ended = True

    def stop(self, *, files: Mapping[Path, str]) -> None:
        """Publishes all that is left, then ends the thread.

        Args:
            files: logs of the node's own processes and their names; of each the end is kept.

        Raises:
            UnreachableError: storage did not take it for a minute.
        """
        self._ending.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure
        for path, name in files.items():
            if path.exists() and (data := path.read_bytes()[-_SEGMENT_BYTES:]):
                self.publish(self._attempt.node_log(name, node_rank=self._node_rank), data)
        deadline = time.monotonic() + _LAST_TRIES_S
        while True:
            try:
                self._beat()
                self._drain(everything=True)
                return
            except (OSError, HeadraceError) as error:
                if time.monotonic() > deadline:
                    raise UnreachableError(
                        f"storage does not take the end of attempt {self._key}", why=str(error), mend="the next start goes on"
                    ) from error
                time.sleep(1.0)

    def _run(self) -> None:
        try:
            while not self._ending.wait(TICK_S):
                try:
                    self._tick()
                except (OSError, HeadraceError) as error:
                    logger.warning("storage does not answer, publishing waits: %s", error)
                    self._ending.wait(1.0)
        except Exception as error:  # noqa: BLE001  # handed to the main thread, which raises it in `stop`
            self.failure = error

    def _tick(self) -> None:
        if time.monotonic() >= self._beat_at:
            self._beat_at = time.monotonic() + HEARTBEAT_EVERY_S
            self._beat()
            self._listen()
        self._drain(everything=False)

    def _listen(self) -> None:
        if not self.cancelled.is_set() and self._storage.exists(self._attempt.cancel):
            self.cancelled.set()
        if not self.declared_lost.is_set() and self._storage.exists(self._attempt.exit):
            self.declared_lost.set()

    def _beat(self) -> None:
        """Publishes one heartbeat; the newest few are kept."""
        with self._lock:
            epochs = dict(self._epochs)
        progress: dict[int, RankProgress] = {}
        for epoch in sorted(epochs):
            if not epochs[epoch].ended:
                progress |= {rank.rank: rank for rank in epochs[epoch].scratch.progress()}
        self.ranks = tuple(progress[rank] for rank in sorted(progress))
        beat = Heartbeat(
            key=self._key,
            node_rank=self._node_rank,
            host=os.environ.get(NODE_NAME) or socket.gethostname(),
            agent_pid=os.getpid(),
            epoch=self._newest_epoch,
            sequence=self._sequence,
            at=time.time(),
            ranks=self.ranks,
            pulses=self.pulses,
            items_done=self.items_done,
            array=self.array,
            usage=self._usage.measure(),
        )
        self._create(self._attempt.heartbeat(self._node_rank, self._sequence), canonical_json(beat))
        if self._sequence >= _KEEP_HEARTBEATS:
            self._storage.delete(self._attempt.heartbeat(self._node_rank, self._sequence - _KEEP_HEARTBEATS))
        self._sequence += 1

    def _next_sequence(self) -> int:
        prefix = f"n{self._node_rank:04d}-"
        numbers = [
            int(match[1]) for name in self._storage.names(self._attempt.heartbeats) if name.startswith(prefix) and (match := _SEQUENCE.search(name))
        ]
        return max(numbers, default=-1) + 1

    def _drain(self, *, everything: bool) -> None:
        """Publishes waiting objects and new pieces of files; with `everything` also what would wait for its time."""
        with self._lock:
            epochs = dict(self._epochs)
        for number, epoch in epochs.items():
            ended = epoch.ended  # read first: what ends from here on may write behind what is read now, and is published the next time
            if everything or ended or time.monotonic() >= epoch.next_at:
                age_s = time.monotonic() - epoch.started_at
                epoch.next_at = time.monotonic() + min(_MOST_SEGMENT_PAUSE_S, max(1.0, age_s / 60))
                self._publish_files(number, epoch)
            if ended:
                shutil.rmtree(epoch.scratch.folder, ignore_errors=True)  # published; what is left is only disk space
                with self._lock:
                    del self._epochs[number]
        while self._objects:
            self._create(*self._objects[0])
            self._objects.popleft()

    def _publish_files(self, number: int, epoch: _Epoch) -> None:
        """Publishes what the epoch's files grew by."""
        for rank, path in epoch.scratch.logs().items():
            epoch.watch(path, partial(self._attempt.log_segment, epoch=number, rank=rank), whole_lines=False)
        for rank, path in epoch.scratch.metrics().items():
            epoch.watch(path, partial(self._artifact.metric_segment, epoch=number, rank=rank), whole_lines=True)
        for tail in epoch.tails.values():
            for piece in tail.pieces():
                self._create(tail.key(sequence=tail.sequence), piece)
        for rank, path in epoch.scratch.notices().items():
            epoch.notices_taken[rank] = self._take_notices(path, offset=epoch.notices_taken.get(rank, 0))

    def _take_notices(self, path: Path, *, offset: int) -> int:
        """Publishes the notices that a rank appended from `offset` on, and returns where the next begin. A torn last line waits."""
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                self.notify(Notice.model_validate_json(line))
            except ValidationError as error:
                logger.warning("%s holds a line that is no notice: %s", path.name, error)
        return offset + len(whole)

    def _create(self, key: str, data: bytes) -> None:
        """Creates an object. Names carry epoch and sequence, so one that is there is our own from before an unclear answer."""
        try:
            self._storage.create_exclusive(key, data)
        except AlreadyExistsError:
            logger.info("%s is there already", key)
