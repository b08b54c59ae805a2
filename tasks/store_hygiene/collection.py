"""`headrace store gc`: mark, and sweep what is left over, a few artifacts at a time, each batch marked again under its leases."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from cluster.layout import SWEEPS, ArtifactLayout
from cluster.lease import REMOVAL, Lease
from cluster.process import is_own
from cluster.storage import Storage
from schemas.errors import LeaseHeldError, UnreachableError, storage_failure
from schemas.frozen import Frozen
from schemas.stage import Stage
from tasks.store_hygiene.inventory import ArtifactState, StoredArtifact, by_key, take_inventory
from tasks.store_hygiene.marking import YOUNG_S, Marked, mark
from tasks.store_hygiene.registered import HasVersions, ask_mlflow, unregistered
from tasks.store_hygiene.roots import collect_roots, read_claims
from tasks.store_hygiene.scratch import leftover_scratch, remove_scratch
from tasks.store_hygiene.sweep import announce_sweep, finish_sweep, may_remove, withdraw_sweep
from tasks.store_hygiene.usage import DiskMeter, DiskUse

logger = logging.getLogger(__name__)

_BATCH = 32
"""Artifacts whose leases are held at a time: everything is marked again once for so many."""
_TAKEN_OVER = ("somebody else took it over",)


class Fate(Frozen):
    """What became of one artifact."""

    key: str
    """Its folder."""
    owner: str
    """user@host."""
    why: tuple[str, ...] = ()
    """Why it stays."""
    use: DiskUse = DiskUse()
    """What it took, where it went or would go."""


class GcReport(Frozen):
    """What `headrace store gc` did, or would do."""

    storage: str
    """The store."""
    dry_run: bool
    """Whether nothing was removed."""
    removed: tuple[Fate, ...]
    """What went; with `dry_run`, what would."""
    kept: tuple[Fate, ...]
    """What stays."""
    failed: tuple[Fate, ...] = ()
    """What could not be removed."""
    completed: tuple[str, ...] = ()
    """Folders of which an interrupted call had left something."""
    scratch: tuple[str, ...] = ()
    """Scratch folders of ended attempts on this machine that went, or would."""

    @property
    def use(self) -> DiskUse:
        """What was, or would be, freed."""
        return sum((fate.use for fate in self.removed), DiskUse())


@dataclass
class Collector:
    """One call of `headrace store gc`."""

    storage: Storage
    keep_runs: int
    force: bool = False
    """Whether artifacts of other users may go, too."""
    settle_s: float = 0.0
    """From taking leases to looking who uses their artifacts: as long as a network file system may show another machine an old state."""
    young_s: float = YOUNG_S
    has_versions: HasVersions = ask_mlflow
    sleep: Callable[[float], None] = time.sleep
    _unregistered: frozenset[str] = field(default=frozenset(), init=False)
    _failed: list[Fate] = field(default_factory=list, init=False)
    _removed: list[Fate] = field(default_factory=list, init=False)

    def collect(self, *, dry_run: bool) -> GcReport:
        """Returns what went and what stayed.

        Raises:
            UnreachableError: MLflow does not answer.
            VerificationError: something that says what is wanted cannot be read. Nothing was removed in either case.
        """
        self._unregistered = unregistered(self.storage, read_claims(self.storage), has_versions=self.has_versions)
        artifacts, marked = self._mark()
        completed: tuple[str, ...] = ()
        if not dry_run:
            completed = self._complete()
            artifacts, marked = self._mark() if completed else (artifacts, marked)
        known, meter = by_key(artifacts), DiskMeter(self.storage)
        unwanted = tuple(Fate(key=key, owner=known[key].owner, use=meter.measure(key)) for key in marked.unwanted)
        kept = dict(marked.kept)
        if not dry_run:
            for start in range(0, len(unwanted), _BATCH):
                kept.update(self._sweep(unwanted[start : start + _BATCH]))
        scratch = self._clear_scratch(dry_run=dry_run)
        return GcReport(
            storage=self.storage.url,
            dry_run=dry_run,
            removed=unwanted if dry_run else tuple(self._removed),
            kept=tuple(Fate(key=artifact.key, owner=artifact.owner, why=kept[artifact.key]) for artifact in artifacts if artifact.key in kept),
            failed=tuple(self._failed),
            completed=completed,
            scratch=scratch,
        )

    def _mark(self, *, held: Collection[str] = ()) -> tuple[tuple[StoredArtifact, ...], Marked]:
        artifacts = take_inventory(self.storage, held=held)
        roots = collect_roots(self.storage, artifacts, keep_runs=self.keep_runs, unregistered=self._unregistered)
        ours = None if self.force else {artifact.key for artifact in artifacts if _may_go(artifact)}
        return artifacts, mark(artifacts, roots, now=time.time(), is_ours=ours, young_s=self.young_s)

    def _sweep(self, fates: Sequence[Fate]) -> Mapping[str, tuple[str, ...]]:
        """Removes a batch, but for what turns out to be used; returns that, with its reasons."""
        kept: dict[str, tuple[str, ...]] = {}
        with ExitStack() as stack:
            leases: dict[str, Lease] = {}
            for fate in fates:
                try:
                    if why := may_remove(self.storage, fate.key):
                        self._failed.append(fate.model_copy(update={"why": (why,)}))
                        continue
                    leases[fate.key] = stack.enter_context(Lease.take(self.storage, ArtifactLayout(fate.key).leases, purpose=REMOVAL))
                except LeaseHeldError as error:
                    kept[fate.key] = (error.what,)
            self.sleep(self.settle_s)
            _, marked = self._mark(held=leases)
            for key in [key for key in leases if key in marked.kept or not leases[key].still_held()]:
                kept[key] = marked.kept.get(key, _TAKEN_OVER)
                leases.pop(key).release()
            going = [fate for fate in fates if fate.key in leases]
            for fate in going:  # first, so that whoever waits for one of them learns its fate soon
                if leases[fate.key].still_held():  # a machine that slept meanwhile may have lost it: what is there now is another's
                    announce_sweep(self.storage, fate.key)
            for fate in going:
                if not self._remove(fate, leases[fate.key]):
                    kept[fate.key] = _TAKEN_OVER
        return kept

    def _remove(self, fate: Fate, lease: Lease) -> bool:
        """Removes an artifact and tells what became of it; returns False when somebody else took it over, and has to say."""
        try:
            if not finish_sweep(self.storage, fate.key, held=lease.still_held):
                return False
        except (OSError, UnreachableError) as error:
            failure = storage_failure(error) if isinstance(error, OSError) else error
            if failure is None:
                raise
            self._failed.append(fate.model_copy(update={"why": (f"{failure.what}; the rest of it goes with the next call",)}))
        else:
            self._removed.append(fate)
        lease.release()
        return True

    def _clear_scratch(self, *, dry_run: bool) -> tuple[str, ...]:
        """Removes the scratch folders that ended attempts left on this machine; returns them."""
        places = leftover_scratch(self.storage, now=time.time(), young_s=self.young_s)
        for place in () if dry_run else places:
            remove_scratch(place)
        return tuple(map(str, places))

    def _complete(self) -> tuple[str, ...]:
        """Finishes what an interrupted call has begun; returns the folders."""
        completed = []
        for stage in Stage:
            for name in self.storage.names(f"{SWEEPS}/{stage.value}"):
                key = f"{stage.value}/{name.removesuffix('.json')}"
                try:
                    if why := may_remove(self.storage, key):
                        logger.warning("%s stays half removed: %s", key, why)
                        continue
                    with Lease.take(self.storage, ArtifactLayout(key).leases, purpose=REMOVAL) as lease:
                        withdraw_sweep(self.storage, key)
                        if finish_sweep(self.storage, key, held=lease.still_held):
                            completed.append(key)
                except LeaseHeldError as error:
                    logger.info("%s", error.what)
        return tuple(completed)


def _may_go(artifact: StoredArtifact) -> bool:
    """Whether this user may remove an artifact without insisting: their own, and what is half removed, which is of no use to anybody."""
    return artifact.state is ArtifactState.HALF_REMOVED or is_own(artifact.owner)
