"""Which checkpoints are kept. The decision is pure; the act removes commits first, then data, and never the last verified one."""

import logging
import re
from collections.abc import Iterable

from schemas.execution_config import CheckpointConfig
from tasks.train.checkpoint.commit import CheckpointStore, verify

logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"^step-(?P<step>\d{8,})\.e(?P<epoch>\d{6,})$")


def steps_to_remove(steps: Iterable[int], *, config: CheckpointConfig, last_verified: int | None, shared_steps: int) -> tuple[int, ...]:
    """Returns the committed steps to remove.

    Kept are the newest `keep_last`, the multiples of `keep_every_steps`, the last verified one, and the newest that a longer training
    can go on from: once a decay has begun, every later one is of use to this training alone.

    Args:
        steps: the committed steps.
        config: the rules.
        last_verified: the newest step whose files were read back.
        shared_steps: states up to this step do not depend on where training stops.
    """
    ascending = sorted(steps)
    kept = set(ascending[-config.keep_last :])
    if config.keep_every_steps is not None:
        kept |= {step for step in ascending if step % config.keep_every_steps == 0}
    if last_verified is not None:
        kept.add(last_verified)
    kept |= set([step for step in ascending if step <= shared_steps][-1:])
    return tuple(step for step in ascending if step not in kept)


def unfinished_folders(names: Iterable[str], *, committed: frozenset[str], quarantined: frozenset[int], epoch: int) -> tuple[str, ...]:
    """Returns the checkpoint folders of earlier epochs that no commit names, left by starts that were killed.

    Folders of quarantined steps stay, as evidence.
    """
    found = [(name, match) for name in names if name not in committed and (match := _FOLDER.match(name))]
    return tuple(name for name, match in found if int(match["epoch"]) < epoch and int(match["step"]) not in quarantined)


class Retention:
    """Applies the rules after each commit. One rank does it."""

    def __init__(self, store: CheckpointStore, *, config: CheckpointConfig, epoch: int, verified_step: int | None, shared_steps: int) -> None:
        """Takes what the rules depend on.

        Args:
            store: the checkpoints.
            config: the rules.
            epoch: this start.
            verified_step: the step that this epoch went on from; None at the very start.
            shared_steps: states up to this step do not depend on where training stops.
        """
        self._store, self._config, self._epoch = store, config, epoch
        self._verified_step, self._shared_steps = verified_step, shared_steps
        self._swept = False

    def apply(self) -> tuple[int, ...]:
        """Removes what the rules no longer keep and returns the removed steps.

        What was just written counts as verified only once its files were read back, so that is done before the last verified one goes.
        """
        steps = self._store.steps()
        if self._verified_step in steps_to_remove(steps, config=self._config, last_verified=None, shared_steps=self._shared_steps):
            self._verify_newest(steps[-1])
        removed = steps_to_remove(steps, config=self._config, last_verified=self._verified_step, shared_steps=self._shared_steps)
        for step in removed:
            self._remove(step)
        if not self._swept:  # what this epoch leaves behind is for the next one
            self._remove_unfinished()
            self._swept = True
        return removed

    def _verify_newest(self, step: int) -> None:
        commit = self._store.read(step)
        findings = ("its record is damaged",) if commit is None else verify(commit, folder=self._store.folder(commit))
        if findings:
            logger.error("step %d was committed but does not verify; step %s is kept: %s", step, self._verified_step, "; ".join(findings))
        else:
            self._verified_step = step

    def _remove(self, step: int) -> None:
        commit = self._store.read(step)
        self._store.storage.delete(self._store.layout.commit(step))  # first: a commit never names data that are gone
        if commit is not None:
            self._store.storage.delete(f"{self._store.layout.key}/{commit.folder}")

    def _remove_unfinished(self) -> None:
        layout, storage = self._store.layout, self._store.storage
        commits = (self._store.read(step) for step in self._store.steps())
        committed = frozenset(commit.folder.rpartition("/")[2] for commit in commits if commit is not None)
        markers = storage.names(f"{layout.key}/quarantine")
        quarantined = frozenset(int(name.partition(".")[0].removeprefix("step-")) for name in markers)
        for name in unfinished_folders(storage.names(layout.checkpoints), committed=committed, quarantined=quarantined, epoch=self._epoch):
            storage.delete(f"{layout.checkpoints}/{name}")
