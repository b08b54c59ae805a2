"""What the jobs of a training have used of their devices, by what they left in storage; and what its budget leaves to the next of them.

An attempt is charged from its claim until the last word of its agents: a job that waits in a queue costs nothing, and one that a supervisor
closed long after it died not for that time. The sum belongs to the training's artifact, so it outlives runs, supervisors and machines.
"""

from dataclasses import dataclass

from cluster.attempt import list_attempts, read_claim, read_heartbeats, read_spec
from cluster.layout import ArtifactLayout
from cluster.storage import Storage
from schemas.cost import HOUR_S, of_hours
from schemas.errors import PolicyStopError
from schemas.job import JobSpec


@dataclass(frozen=True)
class Budget:
    """A training's budget as one of its attempts finds it."""

    allowed_s: float
    """Device-seconds that all attempts together may use."""
    used_s: float
    """Device-seconds that the attempts before used."""
    devices: int
    """What this attempt holds."""
    unit: str
    """What hours of it are called."""

    @property
    def left_s(self) -> float:
        """Seconds that this attempt may last; none when it is used up."""
        return max(0.0, self.allowed_s - self.used_s) / self.devices

    def spent(self, running_s: float) -> PolicyStopError:
        """Returns what people read once this attempt has run for so many seconds, and must stop."""
        used, allowed = (self.used_s + self.devices * running_s) / HOUR_S, self.allowed_s / HOUR_S
        return PolicyStopError(
            f"the budget is used up: {of_hours(used)} of {of_hours(allowed)} {self.unit}",
            why="all jobs of one training together may take budget.gpu_hours; ranks stop in time for a last checkpoint, which is kept",
            mend=f"headrace run RECIPE --set budget.gpu_hours={2 * allowed:.3g} goes on from the newest checkpoint",
        )


def budget_of(storage: Storage, spec: JobSpec) -> Budget | None:
    """Returns the budget as the attempt `spec` finds it; None when it has none."""
    if spec.device_s_allowed is None:
        return None
    used_s = used_device_s(storage, ArtifactLayout(spec.artifact_key), step_name=spec.step_name, before=spec.attempt)
    unit = "GPU-hours" if spec.gpus_per_node else "device-hours"
    return Budget(allowed_s=spec.device_s_allowed, used_s=used_s, devices=spec.devices, unit=unit)


def used_device_s(storage: Storage, layout: ArtifactLayout, *, step_name: str = "", before: int | None = None) -> float:
    """Returns the device-seconds that the attempts below number `before` (None: all) have used. A running one counts until its newest heartbeat."""
    total = 0.0
    for number in list_attempts(storage, layout, step_name=step_name):
        if before is not None and number >= before:
            break
        attempt = layout.attempt(step_name, number)
        claim, beats = read_claim(storage, attempt), read_heartbeats(storage, attempt)
        if claim is not None and beats:
            total += read_spec(storage, attempt).devices * max(0.0, max(beat.at for beat in beats) - claim.claimed_at)
    return total
