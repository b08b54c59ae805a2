"""Hands what ranks and agents left in storage to the tracker, in order, while this process controls the run."""

import threading
from collections.abc import Callable, Mapping, Sequence

from cluster.layout import ArtifactLayout
from cluster.metrics import MetricReader
from cluster.storage import Storage
from schemas.errors import UnreachableError
from schemas.job import Heartbeat
from tasks.tracking import SystemSample, Tracker


class Forwarder:
    """Forwards above the tracker's own high-water step, in a thread: a slow tracker delays nobody. An outage is noted once and made up for later."""

    def __init__(
        self, tracker: Tracker, *, storage: Storage, artifact_key: str, params: Mapping[str, str], every_s: float, note: Callable[[str], None]
    ) -> None:
        """Args: artifact_key: the training artifact. params: the run's parameters, forwarded once. every_s: seconds between hand-overs."""
        self._tracker, self._reader = tracker, MetricReader(storage, ArtifactLayout(artifact_key))
        self._params: Mapping[str, str] = params
        self._every_s, self._note = every_s, note
        self._heartbeats: tuple[Heartbeat, ...] = ()
        self._down = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep_forwarding, name="forwarder", daemon=True)

    def start(self) -> None:
        """Begins to forward every `every_s` seconds."""
        self._thread.start()

    def see(self, heartbeats: tuple[Heartbeat, ...]) -> None:
        """Takes the newest heartbeat of each node, for the use of the machines."""
        self._heartbeats = heartbeats

    def finish(self) -> None:
        """Forwards all that is left, and ends. What an outage holds back is forwarded when the run is resumed."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        self._forward_all()

    def _keep_forwarding(self) -> None:
        pause_s = 0.0
        while not self._ending.wait(pause_s):
            self._forward_all()
            pause_s = self._every_s * (10 if self._down else 1)

    def _forward_all(self) -> None:
        """One hand-over. An outage, or a tracker that refuses, is noted; it never ends the training."""
        try:
            if self._params:
                self._tracker.log_params(self._params)
                self._params = {}
            points = self._reader.read(after_step=self._tracker.forwarded_step())
            if points:
                self._tracker.forward(points)
            self._tracker.log_system(_samples(self._heartbeats))
        except Exception as error:  # noqa: BLE001  # mlflow raises its own errors for what a server refuses; metrics wait in storage
            if not self._down:
                what = error.what if isinstance(error, UnreachableError) else f"{type(error).__name__}: {error}"
                self._note(f"tracking is down, metrics wait in storage: {what}")
            self._down = True
            return
        if self._down:
            self._note("tracking is back; the metrics that waited are forwarded")
            self._down = False


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
