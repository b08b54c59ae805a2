"""What `headrace store` shows: from data to lines of text. Pure."""

from flows.figure import of_bytes, of_moment, table
from schemas.pin import Pin
from tasks.store_hygiene.collection import Fate, GcReport
from tasks.store_hygiene.listing import StoreListing
from tasks.store_hygiene.usage import DiskUse

_MOST_LINES = 40
"""Artifacts that `du` names, the largest; `--json` has all."""


def list_screen(listing: StoreListing) -> list[str]:
    """Returns the artifacts with owner, age and the first reason why they stay; then the pins."""
    rows = [("ARTIFACT", "STATE", "OWNER", "MADE", "KEPT BECAUSE")]
    for artifact in listing.artifacts:
        why = artifact.why[0] if artifact.why else "nothing keeps it"
        more = f" (and {len(artifact.why) - 1} more)" if len(artifact.why) > 1 else ""
        rows.append((artifact.key, artifact.state, artifact.owner or "?", of_moment(artifact.at) if artifact.at else "?", why + more))
    return [listing.storage, *(table(rows) if len(rows) > 1 else ["no artifacts"]), *_pin_lines(listing.pins)]


def use_screen(listing: StoreListing) -> list[str]:
    """Returns what takes the disk: the largest artifacts, then users, then the whole."""
    largest = sorted(listing.artifacts, key=lambda artifact: -(artifact.use or DiskUse()).bytes)
    rows = [(*_cells(artifact.use or DiskUse()), artifact.key, artifact.owner or "?") for artifact in largest[:_MOST_LINES]]
    left_out = [f"and {len(largest) - _MOST_LINES} smaller artifacts: --json"] if len(largest) > _MOST_LINES else []
    rows += [(*_cells(use), f"{name}/", "") for name, use in listing.beside.items()]
    users = [(*_cells(use), owner or "?") for owner, use in sorted(listing.by_owner.items(), key=lambda item: -item[1].bytes)]
    whole = f"{of_bytes(listing.use.bytes)} in {listing.use.files:,} files and folders"
    lines = [listing.storage, *table(rows, right=(0, 1)), *left_out]
    return [*lines, "", "by user", *table(users, right=(0, 1)), "", whole] if users else [*lines, whole]


def gc_screen(report: GcReport) -> list[str]:
    """Returns what went, or would go, why the rest stays, and what that frees."""
    verb = "would go" if report.dry_run else "removed"
    lines = [report.storage]
    lines += [f"  what an interrupted call had left of {key} is removed" for key in report.completed]
    rows = [("stays", fate.key, _reason(fate)) for fate in report.kept]
    rows += [("NOT removed", fate.key, "; ".join(fate.why)) for fate in report.failed]
    rows += [(verb, fate.key, f"{of_bytes(fate.use.bytes)}, {fate.use.files:,} files, {fate.owner or 'owner not known'}") for fate in report.removed]
    lines += [f"  {line}" for line in table(rows)]
    lines += [f"  {verb}: scratch {place}" for place in report.scratch]
    count = f"{len(report.removed)} artifact{'' if len(report.removed) == 1 else 's'}"
    freed = f"{of_bytes(report.use.bytes)} and {report.use.files:,} files"
    return [*lines, f"{count} {'would free' if report.dry_run else 'freed'} {freed}" if report.removed else "nothing to remove"]


def _reason(fate: Fate) -> str:
    return fate.why[0] + (f" (and {len(fate.why) - 1} more)" if len(fate.why) > 1 else "")


def _cells(use: DiskUse) -> tuple[str, str]:
    return of_bytes(use.bytes), f"{use.files:,} files"


def _pin_lines(pins: tuple[Pin, ...]) -> list[str]:
    if not pins:
        return []
    rows = [(f"pin {pin.number}", pin.subject, pin.by, of_moment(pin.at), pin.reason) for pin in pins]
    return ["", *table(rows)]
