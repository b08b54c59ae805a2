"""Which artifacts stay, and why. PURE: what the store holds and what is wanted in, every artifact's fate out."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from schemas.stage import Stage, inputs_of
from tasks.store_hygiene.inventory import ArtifactState, StoredArtifact, by_key
from tasks.store_hygiene.roots import Root

YOUNG_S = 3600.0
"""What was made or taken up within this time stays: clocks differ, and not all who use an artifact leave a run behind."""


@dataclass(frozen=True)
class Marked:
    """The fate of every artifact."""

    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Folder → why it stays, the first reason first."""
    unwanted: tuple[str, ...] = ()
    """Folders of what may go, those that were made from others first."""


def mark(
    artifacts: Collection[StoredArtifact], roots: Iterable[Root], *, now: float, is_ours: Collection[str] | None, young_s: float = YOUNG_S
) -> Marked:
    """Returns what stays and what may go.

    Args:
        artifacts: what the store holds.
        roots: what is wanted for its own sake. What is not in the store is passed over.
        now: seconds since the Unix epoch.
        is_ours: folders of the artifacts that may be removed at all; others stay because they are somebody else's. None: all.
        young_s: see `YOUNG_S`.
    """
    known = by_key(artifacts)
    wanted = [(root.key, root.why) for root in roots if root.key in known]
    wanted += [(artifact.key, why) for artifact in artifacts if (why := _own_reason(artifact, now=now, young_s=young_s))]
    kept = _reach(known, wanted)
    if is_ours is not None:
        foreign = [artifact for artifact in artifacts if artifact.key not in kept and artifact.key not in is_ours]
        for key, reasons in _reach(known, [(artifact.key, f"belongs to {artifact.owner or 'nobody known'}") for artifact in foreign]).items():
            kept.setdefault(key, reasons)
    order = list(Stage)
    left_over = [artifact for artifact in artifacts if artifact.key not in kept]
    left_over.sort(key=lambda artifact: (-order.index(artifact.stage), artifact.key))
    return Marked(kept=kept, unwanted=tuple(artifact.key for artifact in left_over))


def _own_reason(artifact: StoredArtifact, *, now: float, young_s: float) -> str:
    """Returns why an artifact stays whoever wants it; empty when nothing in itself keeps it."""
    if artifact.busy:
        return artifact.busy
    match artifact.state:
        case ArtifactState.DAMAGED:
            return f"damaged, and nothing is known of it: {artifact.damage}"
        case ArtifactState.UNKNOWN:
            return "not made by Headrace"
        case ArtifactState.HALF_REMOVED:
            return ""
    return "made or taken up just now" if now - artifact.newest_at < young_s else ""


def _reach(known: Mapping[str, StoredArtifact], wanted: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Returns what is wanted and all that it was made from, each with its reasons."""
    kept: dict[str, tuple[str, ...]] = {}
    todo = list(wanted)
    while todo:
        key, why = todo.pop(0)
        is_new = key not in kept
        kept[key] = tuple(dict.fromkeys((*kept.get(key, ()), why)))
        if is_new:
            todo += [(source, f"{key} was made from it") for source in known[key].inputs if source in known]
            todo += [(source, f"{key}, which is damaged, may have been made from it") for source in _suspected_inputs(known[key], known.values())]
    return kept


def _suspected_inputs(artifact: StoredArtifact, artifacts: Iterable[StoredArtifact]) -> tuple[str, ...]:
    """Returns what an artifact may have been made from whose record cannot be read: all of the stages before it, models only of its name."""
    if artifact.state is not ArtifactState.DAMAGED:
        return ()
    before: set[Stage] = set()
    todo = list(inputs_of(artifact.stage, prepared=True))  # so that both kinds of corpus count
    while todo:
        stage = todo.pop()
        before.add(stage)
        todo += inputs_of(stage, prepared=True)
    return tuple(other.key for other in artifacts if other.stage in before and (other.stage.is_shared or other.name == artifact.name))
