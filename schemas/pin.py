"""Pins: artifacts that are kept because somebody says so. Immutable objects; taking a pin out adds one."""

from schemas.frozen import Frozen
from schemas.safe_path import RelativePath


class Pin(Frozen):
    """`pins/000002.json`: artifacts that stay, with all they were made from, until the pin is removed."""

    number: int
    """Counts up from 0."""
    subject: str
    """What was pinned, in its user's words: a run, a model, an artifact's folder."""
    keys: tuple[RelativePath, ...]
    """The artifacts' folders."""
    reason: str
    """Why, for people."""
    by: str
    """user@host."""
    at: float
    """Seconds since the Unix epoch."""


class PinRemoval(Frozen):
    """`pins/000002.removed.json`: the pin holds no longer."""

    by: str
    """user@host."""
    at: float
    """Seconds since the Unix epoch."""


class SweepMark(Frozen):
    """`sweeps/{artifact}.json`: the artifact is being removed. Whoever finds it beside a folder without a record removes the rest first."""

    by: str
    """user@host."""
    at: float
    """Seconds since the Unix epoch."""
