"""The output of a run's ranks and work items, as their agents published it: through restarts, new attempts, new jobs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from cluster.attempt import read_spec
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.logs import LogLine, LogReader
from schemas.stage import Stage
from schemas.view import RunState, RunView, StageState, StageView
from tasks.runs import Run
from tasks.views import view_of

_WORKING = (RunState.RUNNING, RunState.DETACHED)
_OWN_WORK = (StageState.RUNNING, StageState.MADE, StageState.FAILED)
_POLL_S = 1.0
_LATE_LOOKS = 5
"""So often an attempt that has ended is looked at again: its other nodes' last words may come after the first one's record."""


@dataclass
class _Attempt:
    """An attempt whose output is read."""

    layout: AttemptLayout
    intended_at: float
    reader: LogReader
    looks_left: int = _LATE_LOOKS
    """Once it has ended."""


@dataclass
class RunOutput:
    """What ranks and work items of a run wrote, read so far: of one stage, or of the one that runs, failed or ran last, and those after it."""

    run: Run
    stage: Stage | None
    rank: int | None
    _first: Stage | None = None
    """With which stage it begins, where none is named."""
    _attempts: dict[str, _Attempt] = field(default_factory=dict)

    @property
    def found(self) -> bool:
        """Whether there was a job."""
        return bool(self._attempts)

    def is_over(self, view: RunView) -> bool:
        """Whether no more will come."""
        own = next((shown for shown in view.stages if shown.stage is self.stage), None)
        ended = own is not None and own.state not in (StageState.PENDING, StageState.RUNNING)
        return ended or view.state not in _WORKING

    def read(self, view: RunView) -> Iterator[LogLine]:
        """Yields the whole lines that came since the last call, attempts in the order in which they were meant to start."""
        for shown in self._stages(view):
            for attempt in self._attempts_of(shown.artifact_key):
                if attempt.looks_left:
                    attempt.looks_left -= self.run.storage.exists(attempt.layout.exit)
                    yield from attempt.reader.read()

    def to_come(self, sleep: Callable[[float], None]) -> Iterator[LogLine]:
        """Yields lines as they are published, until no more will come."""
        over = False
        while not over:
            sleep(_POLL_S)
            view = view_of(self.run)
            over = self.is_over(view)  # asked before reading: what came until then is read
            yield from self.read(view)
        sleep(_POLL_S)
        yield from chain(self.read(view_of(self.run)), self.rest())

    def rest(self) -> Iterator[LogLine]:
        """Yields last lines that never got their end."""
        for attempt in self._attempts.values():
            yield from attempt.reader.rest()

    def _attempts_of(self, artifact_key: str) -> list[_Attempt]:
        storage, layout = self.run.storage, ArtifactLayout(artifact_key)
        found = [AttemptLayout(f"{layout.attempts}/{name}") for name in storage.names(layout.attempts)]
        for attempt in found:
            if attempt.key not in self._attempts and storage.exists(attempt.spec):
                reader = LogReader(storage, attempt, rank=self.rank)
                self._attempts[attempt.key] = _Attempt(attempt, read_spec(storage, attempt).intended_at, reader)
        return sorted((self._attempts[attempt.key] for attempt in found if attempt.key in self._attempts), key=lambda attempt: attempt.intended_at)

    def _stages(self, view: RunView) -> list[StageView]:
        """Returns the stages whose output is wanted and begun."""
        begun = [shown for shown in view.stages if shown.artifact_key and self.stage in (None, shown.stage)]
        if self.stage is not None:
            return begun
        if self._first is None:
            busy = [shown for shown in begun if shown.state in (StageState.RUNNING, StageState.FAILED)]
            self._first = next((shown.stage for shown in (*busy[-1:], *reversed(begun)) if self._attempts_of(shown.artifact_key)), None)
            self._attempts = {}  # those of stages that were looked at only
            return [shown for shown in begun if shown.stage is self._first]
        order = list(Stage)
        return [
            shown
            for shown in begun
            if order.index(shown.stage) >= order.index(self._first) and (shown.state in _OWN_WORK or shown.stage is self._first)
        ]
