"""How the nodes of an attempt bring a checkpoint into object storage together: each one's disk holds its own ranks' files only.

Node 0, whose rank 0 commits, offers every local commit. The others send what they have of it, and answer with what that is. Once all have answered,
node 0 knows whether the whole is there, and commits in storage. Before each start of ranks it says which checkpoints they find, so that all nodes
have the same ones.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.agent.peers import Peers
from cluster.layout import AttemptLayout
from cluster.storage import AlreadyExistsError, Storage
from schemas.canonical import canonical_json
from schemas.checkpoint import CommitRecord
from schemas.frozen import Frozen

logger = logging.getLogger(__name__)

QUIET_S = 15.0
"""Heartbeats come every second: what a node without one for so long has, nobody waits for any more."""


class Answer(Frozen):
    """What a node has sent of an offered checkpoint."""

    files: tuple[str, ...]
    """Paths below the checkpoint's folder."""


class Start(Frozen):
    """What the ranks of an epoch find."""

    steps: tuple[int, ...]
    """The commits of object storage, ascending."""


@dataclass
class Offers:
    """The offers of one attempt, as one of its nodes sees them."""

    storage: Storage
    """Object storage."""
    attempt: AttemptLayout
    """The attempt."""
    peers: Peers
    """Its other nodes."""

    @property
    def alone(self) -> bool:
        """Whether this node has all files anyway."""
        return self.peers.alone

    def offer(self, commit: CommitRecord, data: bytes) -> None:
        """Asks the other nodes for their files of a checkpoint. `data`: the commit as written. An offer that stands is success."""
        _create(self.storage, f"{self.attempt.offers}/{offer_name(commit)}", data)

    def close(self, commit: CommitRecord) -> None:
        """Ends an offer and its answers."""
        name = offer_name(commit)
        self.storage.delete(f"{self.attempt.offers}/{name}")
        for node_rank in self._others:
            self.storage.delete(self.attempt.answer(name, node_rank=node_rank))

    def open(self) -> tuple[str, ...]:
        """Returns the names of the offers that stand, the newest first."""
        return tuple(sorted(self.storage.names(self.attempt.offers), reverse=True))

    def read(self, name: str) -> bytes | None:
        """Returns an offered commit; None when the offer has ended."""
        try:
            return self.storage.read(f"{self.attempt.offers}/{name}")
        except FileNotFoundError:
            return None

    def answer(self, name: str, files: Iterable[str]) -> None:
        """Says what this node has sent of an offered checkpoint."""
        _create(self.storage, self.attempt.answer(name, node_rank=self.peers.node_rank), canonical_json(Answer(files=tuple(files))))

    def answered(self, commit: CommitRecord) -> frozenset[str] | None:
        """Returns the files that the other nodes have sent; None while one of them has not answered."""
        files: set[str] = set()
        for node_rank in self._others:
            try:
                data = self.storage.read(self.attempt.answer(offer_name(commit), node_rank=node_rank))
            except FileNotFoundError:
                return None
            files.update(Answer.model_validate_json(data).files)
        return frozenset(files)

    def announce(self, epoch: int, steps: Iterable[int]) -> None:
        """Says which checkpoints the ranks of an epoch find."""
        _create(self.storage, self.attempt.start(epoch), canonical_json(Start(steps=tuple(sorted(steps)))))

    def announced(self, epoch: int) -> tuple[int, ...] | None:
        """Returns which checkpoints the ranks of an epoch find; None while node 0 has not said it."""
        try:
            return Start.model_validate_json(self.storage.read(self.attempt.start(epoch))).steps
        except FileNotFoundError:
            return None

    @property
    def hopeless(self) -> bool:
        """Whether a node that this one waits for is silent, or the attempt is over. To be asked again and again."""
        awaited = self._others if self.peers.node_rank == 0 else range(1)
        silent_s = self.peers.silent_s()
        return any(silent_s.get(node_rank, 0.0) > QUIET_S for node_rank in awaited) or self.peers.over()

    @property
    def _others(self) -> range:
        return range(1, self.peers.spec.num_nodes)


def offer_name(commit: CommitRecord) -> str:
    """Returns an offer's name; names sort as steps do, and within a step as epochs."""
    return f"{commit.folder.rpartition('/')[2]}.json"


def _create(storage: Storage, key: str, data: bytes) -> None:
    try:
        storage.create_exclusive(key, data)
    except AlreadyExistsError:
        logger.debug("%s stands already", key)
