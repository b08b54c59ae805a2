"""Reads the metrics that agents published as numbered segments: one series without the steps that a restart did again."""

import re
from dataclasses import dataclass, field

from cluster.layout import ArtifactLayout
from cluster.storage import Storage
from schemas.job import MetricPoint

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
