"""Hands what ranks and agents left in storage to the tracker, in order, while this process controls the run."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from cluster.layout import ArtifactLayout
from cluster.metrics import MetricReader
from cluster.storage import Storage
from schemas.errors import UnreachableError
from schemas.progress import Heartbeat
from tasks.tracking import SystemSample, Tracker
from tasks.train.bookkeeping import read_ledger

_LEDGER_EVERY_S = 30.0
"""Between two hand-overs of the goodput ledger."""


class Forwarder:
    """Forwards above the tracker's own high-water step, in a thread: a slow tracker delays nobody. An outage is noted once and made up for later."""

    def __init__(
        self, tracker: Tracker, *, storage: Storage, artifact_key: str, params: Mapping[str, str], every_s: float, note: Callable[[str], None]
    ) -> None:
        """Args: artifact_key: the training artifact. params: the run's parameters, forwarded once. every_s: seconds between hand-overs."""
        self._tracker, self._storage, self._layout = tracker, storage, ArtifactLayout(artifact_key)
        self._reader = MetricReader(storage, self._layout)
        self._ledger_at = time.monotonic() + _LEDGER_EVERY_S
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
        self._forward_all(last=True)

    def _keep_forwarding(self) -> None:
        pause_s = 0.0
        while not self._ending.wait(pause_s):
            self._forward_all()
            pause_s = self._every_s * (10 if self._down else 1)

    def _forward_ledger(self) -> None:
        """Hands over where the time went. MLflow stores what it holds already once, so a training that is over may be told again."""
        ledger = read_ledger(self._storage, self._layout, now=time.time())
        if ledger is not None:
            self._tracker.log_figures(ledger.figures(), at=ledger.until, step=ledger.steps)

    def _forward_all(self, *, last: bool = False) -> None:
        """One hand-over. An outage, or a tracker that refuses, is noted; it never ends the training."""
        try:
            if self._params:
                self._tracker.log_params(self._params)
                self._params = {}
            points = self._reader.read(after_step=self._tracker.forwarded_step())
            if points:
                self._tracker.forward(points)
            self._tracker.log_system(_samples(self._heartbeats))
            if last or time.monotonic() >= self._ledger_at:
                self._ledger_at = time.monotonic() + _LEDGER_EVERY_S
                self._forward_ledger()
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
