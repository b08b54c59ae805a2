"""Reads the metrics that agents published as numbered segments: one series without the steps that a restart did again."""

import re
from dataclasses import dataclass, field

from cluster.layout import ArtifactLayout
from cluster.storage import Storage
from schemas.progress import MetricPoint

_SEGMENT = re.compile(r"^e(?P<epoch>\d{6})-r(?P<rank>\d{4})-(?P<sequence>\d{6})\.jsonl$")


def read_metrics(storage: Storage, layout: ArtifactLayout, *, after_step: int = -1, rank: int = 0) -> tuple[MetricPoint, ...]:
    """Returns a rank's points above `after_step`, ascending by step.

    An epoch that went on from a checkpoint measures some steps again: from its first step on, it replaces what earlier epochs measured.
    """
    return MetricReader(storage, layout, rank=rank).read(after_step=after_step)


@dataclass
class MetricReader:
    """Reads metrics again and again: segments never change, so each is fetched once."""

    storage: Storage
    layout: ArtifactLayout
    rank: int = 0
    _segments: dict[str, tuple[MetricPoint, ...]] = field(default_factory=dict, repr=False)

    def read(self, *, after_step: int = -1) -> tuple[MetricPoint, ...]:
        """Returns the points above `after_step`, ascending by step, as of now."""
        by_epoch: dict[int, list[MetricPoint]] = {}
        for name in self.storage.names(self.layout.metrics):
            match = _SEGMENT.match(name)
            if match and int(match["rank"]) == self.rank:
                by_epoch.setdefault(int(match["epoch"]), []).extend(self._segment(name))
        return tuple(point for point in current_series(by_epoch) if point.step > after_step)

    def _segment(self, name: str) -> tuple[MetricPoint, ...]:
        if name not in self._segments:
            lines = self.storage.read(f"{self.layout.metrics}/{name}").splitlines()
            self._segments[name] = tuple(MetricPoint.model_validate_json(line) for line in lines if line.strip())
        return self._segments[name]


@dataclass
class MetricEdges:
    """Reads single points of long series: the last one of an epoch, and those next to a step near its end. A few segments, not all."""

    storage: Storage
    layout: ArtifactLayout
    rank: int = 0
    _names: dict[int, list[str]] | None = field(default=None, repr=False)
    _lines: dict[str, list[bytes]] = field(default_factory=dict, repr=False)

    def last(self, epoch: int) -> MetricPoint | None:
        """Returns the epoch's newest point, or None when it has none."""
        for name in reversed(self._segments(epoch)):
            if lines := self._read(name):
                return MetricPoint.model_validate_json(lines[-1])
        return None

    def around(self, epoch: int, step: int) -> tuple[MetricPoint, ...]:
        """Returns the newest point at or below `step` and the oldest above it, as far as the epoch has them."""
        above: MetricPoint | None = None
        for name in reversed(self._segments(epoch)):
            for line in reversed(self._read(name)):
                point = MetricPoint.model_validate_json(line)
                if point.step <= step:
                    return (point,) if above is None else (point, above)
                above = point
        return () if above is None else (above,)

    def _segments(self, epoch: int) -> list[str]:
        if self._names is None:
            self._names = {}
            for name in self.storage.names(self.layout.metrics):
                match = _SEGMENT.match(name)
                if match and int(match["rank"]) == self.rank:
                    self._names.setdefault(int(match["epoch"]), []).append(name)  # names are sorted
        return self._names.get(epoch, [])

    def _read(self, name: str) -> list[bytes]:
        if name not in self._lines:
            self._lines[name] = [line for line in self.storage.read(f"{self.layout.metrics}/{name}").splitlines() if line.strip()]
        return self._lines[name]


def current_series(by_epoch: dict[int, list[MetricPoint]]) -> list[MetricPoint]:
    """Returns one series, ascending by step, out of several epochs' points. Pure.

    A later epoch's first step cuts off what earlier epochs measured from that step on.
    """
    series: list[MetricPoint] = []
    for _, points in sorted(by_epoch.items()):
        if points:
            first = min(point.step for point in points)
            series = [point for point in series if point.step < first]
            series.extend(sorted(points, key=lambda point: point.step))  # stable: points of one step stay in order
    return series
