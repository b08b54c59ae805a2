"""Hands what ranks and agents left in storage to the tracker, in order, while this process controls the run."""

import time
from collections.abc import Callable, Mapping, Sequence

from cluster.layout import ArtifactLayout
from cluster.metrics import read_metrics
from cluster.storage import Storage
from schemas.errors import UnreachableError
from schemas.job import Heartbeat
from tasks.tracking import SystemSample, Tracker


class Forwarder:
    """Forwards above the tracker's own high-water step. An outage is noted once and made up for later."""

    def __init__(
        self, tracker: Tracker, *, storage: Storage, artifact_key: str, params: Mapping[str, str], every_s: float, note: Callable[[str], None]
    ) -> None:
        """Args: artifact_key: the training artifact. params: the run's parameters, forwarded once. every_s: least seconds between hand-overs."""
        self._tracker, self._storage, self._layout = tracker, storage, ArtifactLayout(artifact_key)
        self._params: Mapping[str, str] = params
        self._every_s, self._note = every_s, note
        self._next_at, self._down = 0.0, False

    def pump(self, heartbeats: Sequence[Heartbeat]) -> None:
        """Forwards what is new, at most every `every_s` seconds. Never raises for an outage: training goes on."""
        if time.monotonic() < self._next_at:
            return
        try:
            self._forward_all()
            self._tracker.log_system(_samples(heartbeats))
        except UnreachableError as error:
            self._note_outage(error)
            self._next_at = time.monotonic() + 10 * self._every_s
        else:
            self._next_at = time.monotonic() + self._every_s

    def flush(self) -> None:
        """Forwards all that is left, at the end of training. What an outage holds back is forwarded when the run is resumed."""
        try:
            self._forward_all()
        except UnreachableError as error:
            self._note_outage(error)

    def _forward_all(self) -> None:
        if self._params:
            self._tracker.log_params(self._params)
            self._params = {}
        points = read_metrics(self._storage, self._layout, after_step=self._tracker.forwarded_step())
        if points:
            self._tracker.forward(points)
        if self._down:
            self._note("tracking is back; the metrics that waited are forwarded")
            self._down = False

    def _note_outage(self, error: UnreachableError) -> None:
        if not self._down:
            self._note(f"tracking is down, metrics wait in storage: {error.what}")
        self._down = True


def _samples(heartbeats: Sequence[Heartbeat]) -> list[SystemSample]:
    """The use of each node as measurements, at the newest step any of its ranks has reached."""
    samples = []
    for beat in heartbeats:
        if beat.usage is None:
            continue
        step = max((rank.step for rank in beat.ranks), default=0)
        figures: dict[str, float] = beat.usage.model_dump(exclude={"gpu"})
        for index, gpu in enumerate(beat.usage.gpu):
            figures |= {f"gpu-{index}/{name}": float(value) for name, value in gpu.items() if isinstance(value, int | float)}
        samples += [SystemSample(f"node-{beat.node_rank}/{name}", float(value), step, beat.at) for name, value in figures.items()]
    return samples
