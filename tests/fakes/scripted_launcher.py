"""A launcher whose jobs are functions, and a clock that only moves when somebody sleeps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.launchers.protocol import Handle, JobReport, JobState, Submission
from schemas.attempt import Cause
from schemas.job import JobSpec

Script = Callable[[JobSpec], JobState]
"""What a job does when it is submitted; returns what the launcher says of it afterwards."""


@dataclass
class ScriptedLauncher:
    """Runs one script per submission, in order."""

    scripts: list[Script]
    kind: str = "scripted"
    states: dict[str, JobState] = field(default_factory=dict)
    """Answers by attempt key; keys it never heard of are absent."""
    causes: dict[str, Cause] = field(default_factory=dict)
    """Why the launcher ended a job, by attempt key."""
    held: set[str] = field(default_factory=set)
    """Attempt keys of jobs that wait for something else than machines."""
    submitted: list[JobSpec] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    """What jobs have lost for good while the rest runs, by attempt key."""

    def render(self, spec: JobSpec) -> Submission:
        return Submission(key=spec.key, text=spec.model_dump_json(), commands=())

    def submit(self, submission: Submission) -> Handle:
        spec = JobSpec.model_validate_json(submission.text)
        self.submitted.append(spec)
        self.states[spec.key] = self.scripts.pop(0)(spec)
        return Handle(key=spec.key, job_id=str(len(self.submitted)))

    def query(self, keys: Sequence[str]) -> Mapping[str, JobReport]:
        return {
            key: JobReport(self.states.get(key, JobState.ABSENT), cause=self.causes.get(key), held=key in self.held, broken=self.broken.get(key, ""))
            for key in keys
        }

    def cancel(self, key: str) -> None:
        self.cancelled.append(key)

    def release(self, key: str) -> None:
        self.released.append(key)


@dataclass
class StillClock:
    """Monotonic seconds that only `sleep` moves; `at` runs a function when the time comes."""

    now: float = 0.0
    _events: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        assert self.now < 1e5, "nothing happens any more"
        due = [event for event in self._events if event[0] <= self.now]
        self._events = [event for event in self._events if event[0] > self.now]
        for _, act in due:
            act()

    def at(self, when: float, act: Callable[[], None]) -> None:
        self._events.append((when, act))
