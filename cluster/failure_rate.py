"""How often a job fails: what the interval of checkpoints is derived from. PURE, but for `read_exposure`.

The estimate is the mean of a Gamma distribution over the rate of failures (Gelman et al., "Bayesian Data Analysis", 3rd ed., 2.6),
whose prior says half a failure (Jeffreys) in a quarter of an hour. So it begins at half an hour, which makes checkpoints frequent while
nothing is known; one failure a minute pulls it below two minutes within ten, and a day in peace lifts it to two days.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.attempt import list_attempts, read_claim, read_exit, read_heartbeats, read_incidents
from cluster.layout import ArtifactLayout
from cluster.storage import Storage
from schemas.attempt import Cause, Incident
from schemas.job import MTBF_PRIOR_S

_PRIOR_FAILURES = 0.5
_PRIOR_S = _PRIOR_FAILURES * MTBF_PRIOR_S
_ANNOUNCED = frozenset({Cause.FINISHED, Cause.CANCELLED, Cause.PREEMPTION, Cause.TIME_LIMIT, Cause.BUDGET, Cause.QUEUE})
"""Ends that leave time for a checkpoint of their own: no reason to save more often."""


@dataclass(frozen=True)
class Exposure:
    """What a job has seen."""

    seconds: float = 0.0
    """Time under an agent."""
    failures: int = 0
    """Ends of ranks that nobody announced."""

    def __add__(self, other: "Exposure") -> "Exposure":
        """Returns both together."""
        return Exposure(self.seconds + other.seconds, self.failures + other.failures)


def failures_among(incidents: Iterable[Incident]) -> int:
    """Returns how many incidents came unannounced, and cost what was not committed."""
    return sum(incident.cause not in _ANNOUNCED for incident in incidents)


def mtbf_s(exposure: Exposure) -> float:
    """Returns the mean time between failures to expect, seconds: (seconds + prior) / (failures + prior)."""
    return (max(0.0, exposure.seconds) + _PRIOR_S) / (exposure.failures + _PRIOR_FAILURES)


def read_exposure(storage: Storage, layout: ArtifactLayout, *, step_name: str, before: int | None = None) -> Exposure:
    """Returns what the attempts below number `before` (None: all) have seen. An attempt without its end counts until its last heartbeat."""
    total = Exposure()
    for number in list_attempts(storage, layout, step_name=step_name):
        if before is not None and number >= before:
            break
        attempt = layout.attempt(step_name, number)
        claim, ended, beats = read_claim(storage, attempt), read_exit(storage, attempt), read_heartbeats(storage, attempt)
        if claim is None or not beats:
            continue
        incidents = ended.incidents if ended is not None else read_incidents(storage, attempt)
        seen = max(beat.at for beat in beats)  # an attempt that was closed by a supervisor ends on paper long after it ended
        total += Exposure(seconds=max(0.0, seen - claim.claimed_at), failures=failures_among(incidents))
    return total
