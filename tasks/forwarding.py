"""Hands the metrics that ranks left in storage to the tracker, in order, while this process controls the run."""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from cluster.layout import ArtifactLayout
from cluster.metrics import read_metrics
from cluster.storage import Storage
from schemas.errors import UnreachableError
from schemas.job import MetricPoint

logger = logging.getLogger(__name__)


class PointSink(Protocol):
    """Who takes metric points; `tasks.tracking.Tracker` does."""

    def forwarded_step(self) -> int:
        """Returns the newest step it holds; -1: none."""

    def forward(self, points: tuple[MetricPoint, ...]) -> None:
        """Takes points in order of steps. Raises UnreachableError when it cannot; nothing is lost then."""


class Forwarder:
    """Forwards above the tracker's own high-water step. An outage is noted once and made up for later."""

    def __init__(self, sink: PointSink, *, storage: Storage, artifact_key: str, every_s: float, note: Callable[[str], None]) -> None:
        """Args: sink: the tracker. artifact_key: the training artifact. every_s: least seconds between hand-overs."""
        self._sink, self._storage, self._layout = sink, storage, ArtifactLayout(artifact_key)
        self._every_s, self._note = every_s, note
        self._next_at, self._down = 0.0, False

    def pump(self) -> None:
        """Forwards what is new, at most every `every_s` seconds. Never raises for an outage: training goes on."""
        if time.monotonic() < self._next_at:
            return
        try:
            self.flush()
        except UnreachableError as error:
            if not self._down:
                self._note(f"tracking is down, metrics wait in storage: {error.what}")
            self._down = True
            self._next_at = time.monotonic() + 10 * self._every_s
        else:
            self._next_at = time.monotonic() + self._every_s

    def flush(self) -> None:
        """Forwards all that is new. Raises UnreachableError when the tracker is down."""
        points = read_metrics(self._storage, self._layout, after_step=self._sink.forwarded_step())
        if points:
            self._sink.forward(points)
        if self._down:
            self._note("tracking is back, the metrics that waited are forwarded")
            self._down = False
