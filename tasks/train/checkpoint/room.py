"""Whether a disk has room for a training's checkpoints: asked before any rank starts, and answered with the figures."""

import os
from pathlib import Path

from cluster.storage import walk_files
from schemas.errors import UnreachableError
from schemas.frozen import Frozen
from schemas.sizing import TrainingSize

_LEAST_CHECKPOINTS = 2
"""The last good one, and the one that is being written."""


class Room(Frozen):
    """What checkpoints need, and what there is."""

    checkpoint_bytes: int
    """One checkpoint."""
    num_checkpoints: int
    """How many lie there at the most: `keep_last`, those kept for ever, and the one that is being written."""
    present_bytes: int
    """What lies there already."""
    free_bytes: int
    """What the file system still takes."""

    @property
    def lacking(self) -> int:
        """Bytes that all checkpoints lack."""
        return self._lacking(self.num_checkpoints)

    @property
    def lacking_for_any(self) -> int:
        """Bytes that even the fewest checkpoints lack with which training can go on safely."""
        return self._lacking(min(_LEAST_CHECKPOINTS, self.num_checkpoints))

    def _lacking(self, count: int) -> int:
        return max(0, max(count * self.checkpoint_bytes - self.present_bytes, self.checkpoint_bytes) - self.free_bytes)


def measure_room(artifact_dir: Path, *, size: TrainingSize) -> Room | None:
    """Returns the room for an artifact's checkpoints; None where nobody can tell beforehand how large they are (a model of one's own)."""
    if size.checkpoint_bytes is None or size.kept_checkpoints is None:
        return None
    folder = artifact_dir / "checkpoints"
    present = sum(path.stat().st_size for path in walk_files(folder)) if folder.is_dir() else 0
    found = os.statvfs(artifact_dir)
    return Room(
        checkpoint_bytes=size.checkpoint_bytes,
        num_checkpoints=size.kept_checkpoints,
        present_bytes=present,
        free_bytes=found.f_bavail * found.f_frsize,
    )


def refuse_without_room(room: Room, *, folder: Path) -> str:
    """Returns a warning when not all checkpoints fit, or nothing.

    Raises:
        UnreachableError: not even the fewest fit with which training can go on safely.
    """
    figures = (
        f"{_gb(room.num_checkpoints * room.checkpoint_bytes)} for {room.num_checkpoints} checkpoints of {_gb(room.checkpoint_bytes)}, "
        f"of which {_gb(room.present_bytes)} are there already; {_gb(room.free_bytes)} are free"
    )
    mend = f"free {_gb(room.lacking)}, lower checkpoint.keep_last, or move storage.root"
    if room.lacking_for_any:
        raise UnreachableError(f"{folder}: no room for checkpoints", why=f"training needs {figures}", mend=mend)
    return f"{folder} will be full before training ends: it needs {figures}; {mend}" if room.lacking else ""


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"
