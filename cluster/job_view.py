"""A job as people see it: what its agents say, put together from storage while it is followed."""

from dataclasses import dataclass

from cluster.attempt import NoticeFeed, read_incidents
from cluster.launchers.protocol import JobReport
from cluster.layout import AttemptLayout
from cluster.liveness import Life
from cluster.storage import Storage
from schemas.attempt import ExitRecord, Incident
from schemas.job import JobSpec
from schemas.progress import Heartbeat, Notice


@dataclass(frozen=True)
class JobView:
    """A job as it is at one moment, for people."""

    attempt: int
    """The attempt that is followed."""
    key: str
    """Its key."""
    state: Life
    """Whether it lives."""
    heartbeats: tuple[Heartbeat, ...]
    """The newest of each node."""
    incidents: tuple[Incident, ...]
    """This attempt's, oldest first."""
    epoch: int
    """The newest epoch; -1 before the first."""
    step: int
    """Newest step that any rank reports; 0 before the first."""
    total_steps: int
    """Where it ends; 0: not known yet."""
    committed_step: int
    """Newest committed step that is known; -1: none."""
    items_done: int
    """Finished items of an array."""
    num_items: int
    """Items of an array; 0 for a gang."""
    notices: tuple[Notice, ...] = ()
    """This attempt's, oldest first."""
    job: JobReport | None = None
    """What the launcher said last; None: it was not asked, the job speaks for itself."""


class JobViews:
    """The views of a job, attempt after attempt. Between two starts of ranks, when none speaks, what they said last stands."""

    def __init__(self, storage: Storage) -> None:
        """Args: storage: shared storage."""
        self._storage = storage
        self._last: JobView | None = None
        self._attempt: AttemptLayout
        self._notices: NoticeFeed

    def follow(self, attempt: AttemptLayout) -> None:
        """From now on this attempt is looked at."""
        self._attempt, self._notices = attempt, NoticeFeed(self._storage, attempt)

    def of(self, spec: JobSpec, life: Life, *, beats: tuple[Heartbeat, ...], record: ExitRecord | None, job: JobReport | None) -> JobView:
        """Returns the view of this moment.

        Args:
            spec: of the attempt that is followed.
            life: whether it lives.
            beats: the newest heartbeat of each node.
            record: its exit record; None: it has none.
            job: what the launcher said; None: it was not asked.
        """
        ranks = [rank for beat in beats for rank in beat.ranks]
        past = self._last
        self._last = JobView(
            attempt=spec.attempt,
            key=spec.key,
            state=life,
            heartbeats=beats,
            incidents=record.incidents if record is not None else read_incidents(self._storage, self._attempt),
            epoch=max((beat.epoch for beat in beats), default=-1),
            step=max((rank.step for rank in ranks), default=past.step if past else 0),
            total_steps=max((rank.total_steps for rank in ranks), default=past.total_steps if past else 0),
            committed_step=max((rank.committed_step for rank in ranks), default=past.committed_step if past else -1),
            items_done=sum(beat.items_done for beat in beats),
            num_items=spec.num_items,
            notices=self._seen_notices(spec.attempt, beats, ended=record is not None),
            job=job,
        )
        return self._last

    def _seen_notices(self, attempt: int, beats: tuple[Heartbeat, ...], *, ended: bool) -> tuple[Notice, ...]:
        """Returns the attempt's notices; looked for as often as its agents speak at all."""
        past = self._last
        if past is not None and past.attempt == attempt and past.heartbeats == beats and not ended:
            return past.notices
        return self._notices.read()
