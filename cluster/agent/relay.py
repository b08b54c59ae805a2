"""Carries the checkpoints of a training between a node's mirror and object storage: ranks write and commit locally, as on a folder.

A local commit becomes true for everybody when its files are in storage and its commit object is created there, exclusively; never before. What ranks
withdraw or retention removes locally goes in storage too, commits first. One node: on several, no mirror would hold the whole checkpoint.
"""

import logging
import re
import threading

from cluster.acts import add_act, read_acts
from cluster.attempt import committed
from cluster.epoch import newest_epoch, read_epoch
from cluster.layout import ArtifactLayout, step_name
from cluster.mirror import Mirror
from cluster.patience import PatientStorage
from cluster.storage import FileStorage
from schemas.act import Standing, standing_of
from schemas.checkpoint import CommitRecord
from schemas.errors import UnreachableError, VerificationError
from schemas.sealed import SealBrokenError

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_FOLDER = re.compile(r"^step-(?P<step>\d+)\.e(?P<epoch>\d+)$")


class CheckpointRelay:
    """The relay of one attempt. `begin` before each start of ranks, `settle` after the last one."""

    def __init__(self, mirror: Mirror, *, storage: PatientStorage, layout: ArtifactLayout, key: str, spare_commits: int) -> None:
        """Takes what it works with.

        Args:
            mirror: this node's.
            storage: object storage.
            layout: the training.
            key: the attempt's.
            spare_commits: how many commits before the newest one are brought whole: what a rewind may go back to.
        """
        self._mirror, self._storage, self._layout, self._key, self._spare = mirror, storage, layout, key, spare_commits
        self._local = FileStorage(mirror.root)
        self._known: dict[int, bytes] = {}
        """Step → commit, as it came from storage or was sent there."""
        self._damaged: set[int] = set()
        """Steps whose files in storage are not what was committed."""
        self._sent: set[str] = set()
        """Small objects that storage has."""
        self._acts_lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._failure: Exception | None = None

    def begin(self) -> None:
        """Brings what the next start of ranks goes on from: acts, epochs, and the newest checkpoint that verifies.

        A later start of the same attempt goes on from what is here: the upload of its newest commit may still be under way.

        Raises:
            UnreachableError: storage fails.
        """
        self._raise_failure()
        with self._acts_lock:
            self._settle_acts()
        epoch = self._layout.epoch(newest_epoch(self._storage, self._layout))
        if not self._local.exists(epoch):
            self._local.create_exclusive(epoch, self._storage.read(epoch))
        if self._thread.ident is None:
            self._bring_names(f"{self._layout.key}/quarantine")
            self._sweep()
            self._bring_commits()
            self._thread.start()

    def settle(self) -> None:
        """Carries what is left, and ends the thread. Raises what ended it, or UnreachableError."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()
            self._raise_failure()
            self._forward()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # ---- from storage -------------------------------------------------------------------------------------------------

    def _bring_names(self, folder: str) -> None:
        """Copies the small objects of a folder that are not here."""
        present = frozenset(self._local.names(folder))
        for name in self._storage.names(folder):
            if name not in present:
                self._local.create_exclusive(f"{folder}/{name}", self._storage.read(f"{folder}/{name}"))
            self._sent.add(f"{folder}/{name}")

    def _settle_acts(self) -> None:
        """Makes acts here and in storage the same: those that ranks left come after those of storage, which the agent itself may have left."""
        stored = read_acts(self._storage, self._layout)
        for act in read_acts(self._local, self._layout):
            if act not in stored:
                add_act(self._storage, self._layout, act.model_copy(update={"record_hash": ""}))
        self._local.delete(self._layout.acts)
        self._bring_names(self._layout.acts)

    def _bring_commits(self) -> None:
        """Copies all commits, and the data of the newest that verify. Data that do not come are missing here: ranks find that out and fall back."""
        standing = standing_of(read_acts(self._local, self._layout))
        left = 1 + self._spare
        for step in sorted(committed(self._storage, self._layout), reverse=True):
            data = self._storage.read(self._layout.commit(step))
            self._known[step] = data
            if left and self._bring_data(step, data, standing=standing):
                left -= 1
            self._local.create_exclusive(self._layout.commit(step), data)

    def _bring_data(self, step: int, data: bytes, *, standing: Standing) -> bool:
        """Brings the files of a commit and returns whether they are all here."""
        try:
            commit = CommitRecord.from_bytes(data)
            if standing.voids(step=commit.step, epoch=commit.epoch):
                return False
            self._mirror.bring(f"{self._layout.key}/{commit.folder}", commit.files)
        except (SealBrokenError, VerificationError) as error:
            logger.warning("a checkpoint in storage is passed over: %s", error)
            self._damaged.add(step)
            return False
        return True

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

    # ---- to storage ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._ending.wait(_LOOK_EVERY_S):
                try:
                    self._forward()
                except (OSError, UnreachableError) as error:
                    logger.warning("storage does not answer, checkpoints wait on this node: %s", error)
        except Exception as error:  # handed to the main thread, which raises it at the next start of ranks, or in the end
            logger.exception("checkpoints are no longer carried to storage")
            self._failure = error

    def _forward(self) -> None:
        """Carries what is new here: acts and markers first, which commits rely on, then commits, the newest first."""
        with self._acts_lock:
            self._send_names(self._layout.acts)
        self._send_names(f"{self._layout.key}/quarantine")
        here = {step: commit for step in committed(self._local, self._layout) if (commit := self._commit_here(step)) is not None}
        for step in [step for step, data in self._known.items() if here.get(step) != data]:
            self._withdraw(step)
        for step in sorted(here.keys() - self._known.keys(), reverse=True):
            self._send(step, here[step])

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
        """Uploads a checkpoint and then commits it in storage, unless a newer start of ranks exists elsewhere."""
        commit = CommitRecord.from_bytes(data)
        try:
            self._mirror.send(f"{self._layout.key}/{commit.folder}", commit.files)
        except FileNotFoundError:  # retention was faster; what was uploaded of it goes
            self._storage.delete(f"{self._layout.key}/{commit.folder}")
            return
        except VerificationError as error:  # ranks will find that, too, when they go on from it
            logger.error("step %d is not committed in storage: %s", step, error)
            self._known[step] = data
            return
        newest = read_epoch(self._storage, self._layout, newest_epoch(self._storage, self._layout))
        if newest.key != self._key:
            logger.error("step %d of epoch %d is not committed: another attempt has begun epoch %d", step, commit.epoch, newest.epoch)
        elif not self._mirror.create(self._layout.commit(step), data) and self._storage.read(self._layout.commit(step)) != data:
            logger.error("step %d is committed already by another start; this one's copy is not", step)
        self._known[step] = data

    def _withdraw(self, step: int) -> None:
        """Removes a commit that is not here any more, then its data, unless they are kept as evidence.

        A checkpoint that was damaged here alone stays in storage: the next attempt goes on from it.
        """
        data = self._known.pop(step)
        marked = any(name.startswith(f"{step_name(step)}.") for name in self._local.names(f"{self._layout.key}/quarantine"))
        if marked and step not in self._damaged:
            return
        if self._storage.exists(self._layout.commit(step)) and self._storage.read(self._layout.commit(step)) == data:
            self._storage.delete(self._layout.commit(step))
        try:
            folder = f"{self._layout.key}/{CommitRecord.from_bytes(data).folder}"
        except SealBrokenError:
            return
        if not marked and not (self._mirror.root / folder).exists():
            self._storage.delete(folder)
