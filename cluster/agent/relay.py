"""Carries the checkpoints of a training between a node's mirror and object storage: ranks write and commit locally, as on a folder.

A local commit becomes true for everybody when its files are in storage and its commit object is created there, exclusively; never before. What ranks
withdraw or retention removes locally goes in storage too, commits first; what retention removes only once storage has a newer one, so that it never
lacks one. On several nodes this one is node 0's: the others send their ranks' files when they are asked (`cluster.agent.offers`), and node 0 commits
once all of them are there.
"""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.acts import add_act, read_acts
from cluster.agent.inbound import Inbound
from cluster.agent.offers import Offers
from cluster.agent.rounds import Rounds
from cluster.attempt import committed, newest_commit
from cluster.epoch import newest_epoch, read_epoch
from cluster.layout import ArtifactLayout
from cluster.mirror import Mirror
from cluster.patience import PatientStorage
from cluster.storage import FileStorage
from schemas.act import standing_of
from schemas.attempt import EpochRecord
from schemas.checkpoint import CommitRecord
from schemas.errors import UnreachableError, VerificationError
from schemas.sealed import SealBrokenError

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_FOLDER = re.compile(r"^step-(?P<step>\d+)\.e(?P<epoch>\d+)$")
_MARKER = re.compile(r"^step-(?P<step>\d+)\.e(?P<epoch>\d+)\.json$")


@dataclass(frozen=True)
class _Part:
    """What node 0 has sent of a checkpoint."""

    commit: CommitRecord
    data: bytes
    """The commit as written."""
    files: frozenset[str]
    """Paths below the checkpoint's folder."""


class CheckpointRelay:
    """The relay of one attempt on node 0. `begin` before each start of ranks, `settle` after the last one."""

    def __init__(self, mirror: Mirror, *, storage: PatientStorage, layout: ArtifactLayout, key: str, spare_commits: int, offers: Offers) -> None:
        """Takes what it works with.

        Args:
            mirror: this node's.
            storage: object storage.
            layout: the training.
            key: the attempt's.
            spare_commits: how many commits before the newest one are brought whole: what a rewind may go back to.
            offers: how it asks the other nodes for their files.
        """
        self._mirror, self._storage, self._layout, self._key, self._offers = mirror, storage, layout, key, offers
        self._inbound = Inbound(mirror, storage=storage, layout=layout, spare_commits=spare_commits)
        self._local = FileStorage(mirror.root)
        self._known: dict[int, bytes] = {}
        """Step → commit, as it came from storage or was sent there. Also those that were refused there, or not whole."""
        self._stored: set[int] = set()
        """Those of them that storage has, whole."""
        self._pending: dict[int, _Part] = {}
        """Step → what this node has sent of it, while it waits for the others."""
        self._leaving: set[str] = set()
        """Folders of commits that were withdrawn while retention, or a rank that was killed in its midst, has them here still."""
        self._sent: set[str] = set()
        """Small objects that storage has."""
        self._begins, self._fenced_in = 0, -1
        """Calls of `begin`, and in which of them another attempt was seen to have started ranks. No lock: a round may last as long as an upload."""
        self._acts_lock = threading.Lock()
        self._rounds = Rounds(self._forward, name="relay")

    def begin(self) -> None:
        """Brings what the next start of ranks goes on from: acts, epochs, and the newest checkpoint that verifies.

        On one node, a later start of the same attempt goes on from what is here: the upload of its newest commit may still be under way. On
        several, that is finished first, and all nodes take what storage has. So does one node that lost its commits: ranks would begin at step 0.

        Raises:
            UnreachableError: storage fails.
        """
        self._rounds.check()
        is_first = not self._rounds.begun
        if not (is_first or self._offers.alone):
            self._drain()
        self._begins += 1
        with self._acts_lock:
            self._settle_acts()
        epoch = self._inbound.bring_epoch()
        has_nothing = is_first or self._is_lost()
        if has_nothing:
            self._sent.update(self._inbound.bring_names(f"{self._layout.key}/quarantine"))
        if is_first:
            self._sweep()
        if has_nothing or not self._offers.alone:
            with self._rounds.lock:
                self._known = self._inbound.bring_commits(committed(self._storage, self._layout))
                self._stored = self._known.keys() - self._inbound.damaged
        if not self._offers.alone:
            self._offers.announce(epoch, self._known)
        if is_first:
            self._rounds.begin()

    def settle(self) -> None:
        """Carries what is left, and ends the thread. Raises what ended it, or UnreachableError."""
        self._rounds.end()
        self._rounds.check()
        if self._rounds.begun:
            self._drain()

    def _drain(self) -> None:
        """Carries all that is committed here; gives up what a node that is gone would have to send."""
        while True:
            with self._rounds.lock:
                self._forward()
                if self._fenced:
                    self._pending.clear()
                if not self._pending:
                    return
                if self._offers.hopeless:
                    logger.error("steps %s are not committed in storage: a node that holds part of them is gone", sorted(self._pending))
                    self._pending.clear()
                    return
            time.sleep(_LOOK_EVERY_S)

    # ---- from storage -------------------------------------------------------------------------------------------------

    def _settle_acts(self) -> None:
        """Makes acts here and in storage the same: those that ranks left come after those of storage, which the agent itself may have left."""
        stored = read_acts(self._storage, self._layout)
        for act in read_acts(self._local, self._layout):
            if act not in stored:
                add_act(self._storage, self._layout, act.model_copy(update={"record_hash": ""}))
        self._local.delete(self._layout.acts)
        self._sent.update(self._inbound.bring_names(self._layout.acts))

    def _sweep(self) -> None:
        """Removes what earlier starts left half uploaded: data that no commit names, but for those of damaged commits."""
        named, kept = set[str](), set[int]()
        for step in committed(self._storage, self._layout):
            try:
                named.add(CommitRecord.from_bytes(self._storage.read(self._layout.commit(step))).folder.rpartition("/")[2])
            except SealBrokenError:
                kept.add(step)
        kept |= {int(name.partition(".")[0].removeprefix("step-")) for name in self._local.names(f"{self._layout.key}/quarantine")}
        newest = newest_epoch(self._local, self._layout)
        for name in self._storage.names(self._layout.checkpoints):
            match = _FOLDER.match(name)
            if match is not None and name not in named and int(match["step"]) not in kept and int(match["epoch"]) < newest:
                self._storage.delete(f"{self._layout.checkpoints}/{name}")
        self._storage.patiently(lambda: self._mirror.storage.abandon_uploads(self._layout.checkpoints))

    def _is_lost(self) -> bool:
        """Whether something else than ranks removed all commits here. Waits for the round under way only when none is here."""
        if committed(self._local, self._layout):
            return False
        with self._rounds.lock:
            return self._lost_folder() or bool(self._unexplained())

    # ---- to storage ---------------------------------------------------------------------------------------------------

    def _forward(self) -> None:
        """Carries what is new here: acts and markers first, which commits rely on, then commits, the newest first.

        What ranks withdrew goes at once. What retention removed waits for what is sent now: it may be the only commit that storage has. So does
        what went without a reason when no commit is left here: a cleaner of old files leaves folders.
        """
        if self._fenced:
            return
        with self._acts_lock:
            self._send_names(self._layout.acts)
        self._send_names(f"{self._layout.key}/quarantine")
        here = {step: commit for step in committed(self._local, self._layout) if (commit := self._commit_here(step)) is not None}
        if self._lost_folder():
            what = f"{self._mirror.root / self._layout.commits} is gone"
            raise UnreachableError(what, why="ranks remove commits, never their folder", mend="keep what cleans up away from the scratch folder")
        newest = newest_commit(self._local, self._layout)  # after `here`: retention removes a commit when a newer one is there
        gone = [step for step, data in self._known.items() if here.get(step) != data]
        kept = self._unexplained() if newest < 0 else frozenset[int]()
        superseded = [step for step in gone if step not in here and (step in kept or (step < newest and self._is_good(step)))]
        withdrawn = [step for step in gone if step not in superseded]
        if withdrawn and self._is_fenced():
            return
        for step in withdrawn:
            self._withdraw(step)
        self._send_new(here, newest=newest)
        self._remove_old([step for step in superseded if self._has_newer(step, here)])

    def _send_new(self, here: Mapping[int, bytes], *, newest: int) -> None:
        """Sends what storage does not have; what retention removed after this node had sent its part stays wanted until a newer one is there."""
        for step, part in list(self._pending.items()):
            is_superseded = step not in here and step < newest and not self._has_newer(step, here)
            if here.get(step) != part.data and not is_superseded:
                self._give_up(part.commit, part.data)
        fresh = {step: part.data for step, part in self._pending.items()} | {step: here[step] for step in here.keys() - self._known.keys()}
        steps = sorted(fresh, reverse=True)
        if not self._offers.alone:
            for step in steps:
                if step not in self._pending:
                    self._offers.offer(CommitRecord.from_bytes(fresh[step]), fresh[step])
        for step in steps:
            self._send(step, fresh[step])

    def _remove_old(self, steps: list[int]) -> None:
        """Removes commits that retention removed here, and the data of removed commits once they are not here either."""
        if (steps or self._left()) and self._is_fenced():  # asked again: to send may have taken long
            return
        for step in steps:
            self._withdraw(step)
        for folder in self._left():
            self._storage.delete(folder)
            self._leaving.discard(folder)

    def _left(self) -> list[str]:
        return [folder for folder in self._leaving if not (self._mirror.root / folder).exists()]

    def _lost_folder(self) -> bool:
        """Whether something else than ranks removed the commits here: to be gone means nothing then."""
        return bool(self._known) and not (self._mirror.root / self._layout.commits).is_dir()

    def _unexplained(self) -> frozenset[int]:
        """Returns the good commits of storage that no rewind left behind: ranks have no reason to withdraw all of them."""
        good = [CommitRecord.from_bytes(self._known[step]) for step in self._known if self._is_good(step)]
        if not good:
            return frozenset()
        with self._acts_lock:
            standing = standing_of(read_acts(self._local, self._layout))
        return frozenset(commit.step for commit in good if not standing.voids(step=commit.step, epoch=commit.epoch))

    @property
    def _fenced(self) -> bool:
        """Whether another attempt was seen to have started ranks since `begin`: nothing is carried any more."""
        return self._fenced_in == self._begins

    def _is_fenced(self) -> bool:
        """Whether ranks of another attempt have started: it goes on from what storage has, and that is no longer this one's to remove."""
        begins = self._begins  # what is read now says nothing about a `begin` that comes meanwhile
        newest = self._newest_start()
        if newest.key == self._key:
            return False
        self._fenced_in = begins
        logger.error("nothing is carried to storage any more: another attempt has begun epoch %d", newest.epoch)
        return True

    def _newest_start(self) -> EpochRecord:
        return read_epoch(self._storage, self._layout, newest_epoch(self._storage, self._layout))

    def _has_newer(self, step: int, here: Mapping[int, bytes]) -> bool:
        """Whether storage has a newer commit that ranks have not withdrawn either."""
        return any(other > step for other in self._stored & here.keys())

    def _is_good(self, step: int) -> bool:
        """Whether storage has this commit and ranks did not find it damaged."""
        data = self._known[step]
        return step in self._stored and _epoch_of(data) is not None and not self._is_marked(step, data)

    def _is_marked(self, step: int, data: bytes) -> bool:
        """Whether ranks found this commit damaged: in a later epoch than its own. An older marker is of one that was made before it."""
        epoch = _epoch_of(data)
        return any(epoch is None or found_in > epoch for found_in in self._marks(step))

    def _marks(self, step: int) -> list[int]:
        """Returns the epochs in which commits of a step were found damaged."""
        matches = (_MARKER.match(name) for name in self._local.names(f"{self._layout.key}/quarantine"))
        return [int(match["epoch"]) for match in matches if match is not None and int(match["step"]) == step]

    def _send_names(self, folder: str) -> None:
        for name in self._local.names(folder):
            if (key := f"{folder}/{name}") not in self._sent:
                self._mirror.create(key, self._local.read(key))
                self._sent.add(key)

    def _commit_here(self, step: int) -> bytes | None:
        """Returns a local commit; None when retention has just removed it. One that this node's disk damaged counts as it was."""
        try:
            data = self._local.read(self._layout.commit(step))
            CommitRecord.from_bytes(data)
        except FileNotFoundError:
            return None
        except SealBrokenError:
            return self._known.get(step)
        return data

    def _send(self, step: int, data: bytes) -> None:
        """Uploads a checkpoint, waits for the other nodes' parts of it, and then commits it in storage."""
        commit = CommitRecord.from_bytes(data)
        if step not in self._pending:
            try:
                self._pending[step] = self._send_own(commit, data)
            except FileNotFoundError:  # retention was faster
                self._give_up(commit, data)
                return
            except VerificationError as error:  # ranks will find that, too, when they go on from it
                logger.error("step %d is not committed in storage: %s", step, error)
                self._close(commit, data)
                return
        sent = self._offers.answered(commit)
        if sent is None:
            return
        if missing := {entry.path for entry in commit.files} - self._pending[step].files - sent:
            logger.error("step %d is not committed in storage: no node has %s", step, ", ".join(sorted(missing)))
        else:
            self._commit(commit, data)
        self._close(commit, data)

    def _send_own(self, commit: CommitRecord, data: bytes) -> _Part:
        """Uploads what this node has of a checkpoint: on one node all of it. Raises FileNotFoundError, VerificationError."""
        folder, own = f"{self._layout.key}/{commit.folder}", commit.files
        if not self._offers.alone:
            own = tuple(entry for entry in own if (self._mirror.root / folder / entry.path).exists())
        self._mirror.send_held(folder, own)
        return _Part(commit, data=data, files=frozenset(entry.path for entry in own))

    def _commit(self, commit: CommitRecord, data: bytes) -> None:
        """Commits in storage, unless a newer start of ranks exists elsewhere."""
        key = self._layout.commit(commit.step)
        newest = self._newest_start()
        if newest.key != self._key:
            logger.error("step %d of epoch %d is not committed: another attempt has begun epoch %d", commit.step, commit.epoch, newest.epoch)
        elif self._mirror.create(key, data) or self._storage.read(key) == data:
            self._stored.add(commit.step)
        else:
            logger.error("step %d is committed already by another start; this one's copy is not", commit.step)

    def _close(self, commit: CommitRecord, data: bytes) -> None:
        """Notes that nothing is left to do for a local commit."""
        self._known[commit.step] = data
        self._pending.pop(commit.step, None)
        if not self._offers.alone:
            self._offers.close(commit)

    def _give_up(self, commit: CommitRecord, data: bytes) -> None:
        """Removes what was uploaded of a checkpoint that is not here any more; also its commit, if storage has it but its answer was lost."""
        if self._is_fenced():
            return
        logger.warning("step %d is not committed in storage: it was removed here before it was sent", commit.step)
        self._remove_commit(commit.step, data)
        self._pending.pop(commit.step, None)
        if not self._offers.alone:
            self._offers.close(commit)
        self._storage.delete(f"{self._layout.key}/{commit.folder}")

    def _withdraw(self, step: int) -> None:
        """Removes a commit that is not here any more. Its data follow once they are not here either, unless they are kept as evidence.

        A checkpoint that was damaged here alone stays in storage: the next attempt goes on from it.
        """
        data = self._known.pop(step)
        self._stored.discard(step)
        marked = self._is_marked(step, data)
        if marked and step not in self._inbound.damaged:
            return
        self._remove_commit(step, data)
        if not marked:
            with contextlib.suppress(SealBrokenError):  # then nobody knows which they are
                self._leaving.add(f"{self._layout.key}/{CommitRecord.from_bytes(data).folder}")

    def _remove_commit(self, step: int, data: bytes) -> None:
        """Removes a commit from storage, unless another one has taken its place."""
        key = self._layout.commit(step)
        if self._storage.exists(key) and self._storage.read(key) == data:
            self._storage.delete(key)


def _epoch_of(data: bytes) -> int | None:
    """Returns the epoch that wrote a commit; None when the commit is damaged."""
    try:
        return CommitRecord.from_bytes(data).epoch
    except SealBrokenError:
        return None
