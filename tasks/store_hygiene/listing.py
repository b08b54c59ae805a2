"""`headrace store ls` and `du`: what the store holds, whose it is, why it stays, and what it takes. Asks storage only."""

import time
from collections import defaultdict
from collections.abc import Mapping

from cluster.storage import Storage
from schemas.frozen import Frozen
from schemas.pin import Pin
from tasks.store_hygiene.inventory import take_inventory
from tasks.store_hygiene.marking import mark
from tasks.store_hygiene.pin_log import standing_pins
from tasks.store_hygiene.roots import collect_roots
from tasks.store_hygiene.usage import DiskMeter, DiskUse

_BESIDE = ("runs", "flow-runs", "registry", "pins", "sweeps")
"""Folders of the store that hold no artifacts."""


class ListedArtifact(Frozen):
    """One line of `ls` or `du`."""

    key: str
    """The artifact's folder."""
    state: str
    """`finished`, `unfinished`, `damaged`, `half removed`, `unknown`."""
    owner: str
    """user@host of who made it, or began to."""
    at: float
    """When it was finished or last taken up; 0: nothing tells. Seconds since the Unix epoch."""
    why: tuple[str, ...] = ()
    """Why it stays; empty: nothing keeps it."""
    use: DiskUse | None = None
    """What it takes, when that was asked for."""


class StoreListing(Frozen):
    """What a store holds."""

    storage: str
    """The store."""
    artifacts: tuple[ListedArtifact, ...]
    """All artifacts."""
    pins: tuple[Pin, ...]
    """The pins that hold."""
    beside: Mapping[str, DiskUse] = {}
    """What the folders take that hold no artifacts, by name, when that was asked for."""

    @property
    def by_owner(self) -> Mapping[str, DiskUse]:
        """What each user's artifacts take, where it was measured."""
        sums: defaultdict[str, DiskUse] = defaultdict(DiskUse)
        for artifact in self.artifacts:
            sums[artifact.owner] += artifact.use or DiskUse()
        return dict(sums)

    @property
    def use(self) -> DiskUse:
        """What all of it takes, where it was measured."""
        return sum((artifact.use or DiskUse() for artifact in self.artifacts), sum(self.beside.values(), DiskUse()))


def list_store(storage: Storage, *, keep_runs: int, measured: bool) -> StoreListing:
    """Returns what the store holds. MLflow is not asked: what was ever registered counts as registered.

    Args:
        storage: the store.
        keep_runs: how many of each user's runs count as recent.
        measured: whether to look how much disk everything takes.

    Raises:
        VerificationError: something that says what is wanted cannot be read.
    """
    artifacts, meter = take_inventory(storage), DiskMeter(storage)
    marked = mark(artifacts, collect_roots(storage, artifacts, keep_runs=keep_runs), now=time.time(), is_ours=None)
    return StoreListing(
        storage=storage.url,
        artifacts=tuple(
            ListedArtifact(
                key=artifact.key,
                state=artifact.state.value,
                owner=artifact.owner,
                at=artifact.newest_at,
                why=marked.kept.get(artifact.key, ()),
                use=meter.measure(artifact.key) if measured else None,
            )
            for artifact in artifacts
        ),
        pins=standing_pins(storage),
        beside={name: meter.measure(name) for name in _BESIDE if storage.names(name)} if measured else {},
    )
