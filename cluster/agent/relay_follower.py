"""The checkpoints of a training on object storage, on the nodes above 0: they send their ranks' files when node 0 asks, and find what it says.

Nothing is committed here: see `cluster.agent.offers` and `cluster.agent.relay`.
"""

import logging
import re
import time

from cluster.agent.inbound import Inbound
from cluster.agent.offers import Offers
from cluster.agent.rounds import Rounds
from cluster.layout import ArtifactLayout
from cluster.mirror import Mirror
from cluster.patience import PatientStorage
from cluster.storage import FileStorage
from schemas.checkpoint import CommitRecord
from schemas.errors import UnreachableError, VerificationError

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_WAIT_S = 0.1
_NAME = re.compile(r"^step-(\d+)\.e(\d+)")


class CheckpointFollower:
    """The part of a node above 0. `begin` before each start of ranks, `settle` after the last one."""

    def __init__(self, mirror: Mirror, *, storage: PatientStorage, layout: ArtifactLayout, spare_commits: int, offers: Offers) -> None:
        """Args: as for `cluster.agent.relay.CheckpointRelay`."""
        self._mirror, self._storage, self._layout, self._offers = mirror, storage, layout, offers
        self._inbound = Inbound(mirror, storage=storage, layout=layout, spare_commits=spare_commits)
        self._local = FileStorage(mirror.root)
        self._answered: set[str] = set()
        self._epoch = -1
        self._rounds = Rounds(self._serve, name="relay")

    def begin(self) -> None:
        """Waits until node 0 has said which checkpoints the next start of ranks finds, and brings them.

        Raises:
            UnreachableError: storage fails, or node 0 is silent.
        """
        self._rounds.check()
        epoch = self._inbound.bring_epoch()
        while (steps := self._offers.announced(epoch)) is None:
            if self._offers.hopeless:
                raise UnreachableError("node 0 does not say which checkpoint to go on from", why="it is silent, or the attempt is over")
            time.sleep(_WAIT_S)
        with self._rounds.lock:
            self._local.delete(self._layout.acts)
            for folder in (self._layout.acts, f"{self._layout.key}/quarantine"):
                self._inbound.bring_names(folder)
            self._inbound.bring_commits(steps)
            self._epoch = epoch
        if not self._rounds.begun:
            self._rounds.begin()

    def settle(self) -> None:
        """Sends what node 0 asks for until the attempt is over, or node 0 silent; then ends the thread. Raises what ended it."""
        while self._rounds.going_on and not self._offers.hopeless:
            time.sleep(_LOOK_EVERY_S)
        self._rounds.end()
        self._rounds.check()

    def _serve(self) -> None:
        """Sends this node's files of every checkpoint that is offered, the newest first, and answers."""
        names = self._offers.open()
        for name in names:
            if name not in self._answered and (data := self._offers.read(name)) is not None:
                commit = CommitRecord.from_bytes(data)
                sent = self._send(commit)
                self._answered.add(name)
                if self._offers.read(name) is None:  # node 0 ended the offer before it removed what was there by then
                    for path in sent:
                        self._storage.delete(f"{self._layout.key}/{commit.folder}/{path}")
                else:
                    self._offers.answer(name, sent)
        self._remove_old(frozenset(names) - self._answered)

    def _send(self, commit: CommitRecord) -> tuple[str, ...]:
        """Uploads what is here of a checkpoint and returns its paths; a file that this disk damaged is not among them."""
        folder, sent = f"{self._layout.key}/{commit.folder}", []
        for entry in commit.files:
            if (self._mirror.root / folder / entry.path).exists():
                try:
                    self._mirror.send(folder, (entry,))
                except VerificationError as error:
                    logger.error("step %d lacks a file in storage: %s", commit.step, error)
                    continue
                sent.append(entry.path)
        return tuple(sent)

    def _remove_old(self, wanted: frozenset[str]) -> None:
        """Removes what these ranks wrote before the newest checkpoint of theirs that was offered, but for what is still to be sent.

        Node 0 offers all that it has committed at once: what is older and not offered was sent, or removed there. What they began from stays, and
        so does what an earlier start was further with than they are.
        """
        newest = max((self._step_of(name) for name in self._answered), default=-1)
        for name in self._local.names(self._layout.checkpoints):
            if f"{name}.json" not in wanted and 0 <= self._step_of(name) < newest:
                self._local.delete(f"{self._layout.checkpoints}/{name}")

    def _step_of(self, name: str) -> int:
        """Returns the step of a checkpoint of this start; -1 for any other name."""
        match = _NAME.match(name)
        return int(match[1]) if match is not None and int(match[2]) == self._epoch else -1
