"""How many nodes the next attempt of a gang asks for, and how long it waits for them. PURE: what past attempts left goes in.

| the newest attempt | the next one asks for | and is withdrawn after `smaller_after` |
|---|---|---|
| there is none, or none has ever begun | all nodes | never: it waits as long as it takes |
| began, and ended for whatever reason | all nodes | if there is a smaller shape |
| was withdrawn from the queue, or refused, before it began | the next smaller shape | if there is a smaller shape |
| was cancelled before it began | all nodes | if there is a smaller shape, and an earlier one has begun |

The first attempt is not withdrawn: nothing was taken from it yet, a place in a long queue is worth keeping, and a training that never had its nodes
is what its recipe asks for only with all of them. What has begun loses time and gains nothing while it waits.

A smaller attempt is not ended in order to grow, unless `grow_after` says so: then that is the end of its allocation, as its agents see it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.gang_shape import GangShape
from schemas.job import ElasticLimits, JobSpec


@dataclass(frozen=True)
class PastAttempt:
    """What one attempt left."""

    num_nodes: int
    """What it asked for."""
    has_begun: bool
    """Whether an agent claimed it."""
    withdrawn: str = ""
    """Why it was withdrawn for a smaller one; empty: it was not."""


@dataclass(frozen=True)
class Ask:
    """What the next attempt asks for."""

    shape: GangShape
    """Nodes, and ranks on each."""
    withdraw_after_s: float | None
    """Wait in the queue after which it is withdrawn. Seconds; None: never."""
    because: str
    """Why it asks for less than is wanted; empty: it does not."""
    time_limit_s: float | None
    """How long it may work at most. Seconds; None: no limit."""


def next_ask(limits: ElasticLimits, past: Sequence[PastAttempt], *, time_limit_s: float | None) -> Ask:
    """Returns what the next attempt asks for, by the table above.

    Args:
        limits: the shapes and waits that the recipe allows. It may have changed since the past attempts.
        past: oldest first.
        time_limit_s: of an allocation; None: it has no known end.
    """
    newest = past[-1] if past else None
    shape, because = limits.shapes[0], ""
    if newest is not None and newest.withdrawn:
        shape = next((shape for shape in limits.shapes if shape.num_nodes < newest.num_nodes), limits.shapes[-1])
        because = newest.withdrawn if shape != limits.shapes[0] else ""
    may_shrink = shape != limits.shapes[-1] and any(attempt.has_begun for attempt in past)
    ends = [end for end in (time_limit_s, limits.grow_after_s if because else None) if end is not None]
    return Ask(shape, limits.smaller_after_s if may_shrink else None, because, min(ends, default=None))


def not_given(spec: JobSpec) -> str:
    """Returns why an attempt is withdrawn that has waited for too long."""
    assert spec.withdraw_after_s is not None
    return f"the queue did not give {_nodes(spec.num_nodes)} within {_span(spec.withdraw_after_s)}"


def refused(spec: JobSpec, *, launcher: str) -> str:
    """Returns why an attempt is closed that the launcher will never take as it is."""
    without = f" other than {', '.join(spec.excluded_nodes)}" if spec.excluded_nodes else ""
    return f"{launcher} has no {_nodes(spec.num_nodes)}{without} for it"


def reduction(spec: JobSpec) -> str:
    """Returns `2 of 4 nodes since attempt 3: the queue did not give 4 nodes within 10 min`; empty for an attempt that has all."""
    if spec.elastic is None or not spec.smaller_because:
        return ""
    return f"{spec.num_nodes} of {_nodes(spec.elastic.shapes[0].num_nodes)} since attempt {spec.attempt}: {spec.smaller_because}"


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _span(seconds: float) -> str:
    """Returns `10 min`: in the largest unit of which it is a whole number."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"
