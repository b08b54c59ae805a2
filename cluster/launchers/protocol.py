"""What a launcher is: it renders a submission (pure), submits it, and answers what it knows about jobs. It decides nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from schemas.attempt import Cause
from schemas.errors import UnreachableError
from schemas.job import JobSpec

AGENT_MODULE = "cluster.agent.agent"
"""What every launcher starts, once per node."""


class JobState(StrEnum):
    """What a launcher answers about an attempt."""

    PENDING = "pending"
    """Submitted, not started yet."""
    RUNNING = "running"
    """Its processes run."""
    ENDED = "ended"
    """The launcher remembers it, and that it has ended."""
    ABSENT = "absent"
    """The launcher answered, and knows no such job."""
    UNKNOWN = "unknown"
    """The launcher could not be asked. Says nothing about the job."""


@dataclass(frozen=True)
class JobReport:
    """What a launcher knows of an attempt. Everything but the state is for people, or absent."""

    state: JobState
    """What it answers."""
    job_id: str = ""
    """What it calls the job."""
    told: str = ""
    """Its own words: `PENDING (Priority)`."""
    nodes: str = ""
    """Where it runs, or ran."""
    starts: str = ""
    """When it expects to start a job that waits."""
    cause: Cause | None = None
    """Why it ended the job; None: it did not, or does not say."""
    broken: str = ""
    """Of a job that has probably lost a part for good while the rest still runs: what. A gang's rest cannot go on alone."""
    held: bool = False
    """Of a job that waits: whether it is not machines that it waits for, but a date, a person, a closed queue. To ask for fewer would not help."""


@dataclass(frozen=True)
class Command:
    """One program to start."""

    argv: tuple[str, ...]
    """Program and arguments."""
    env: Mapping[str, str]
    """Variables on top of the submitter's environment."""
    cwd: str
    """Working directory."""
    stdin: str = ""
    """What it reads."""
    folders: tuple[str, ...] = ()
    """What must be there before."""


@dataclass(frozen=True)
class Submission:
    """What would be submitted, in full: `headrace plan` shows it."""

    key: str
    """The attempt key."""
    text: str
    """For people: command lines, a batch script, a manifest."""
    commands: tuple[Command, ...]
    """What `submit` starts on this machine."""


@dataclass(frozen=True)
class Handle:
    """What the launcher answered to a submission."""

    key: str
    """The attempt key."""
    job_id: str
    """What the launcher calls the job."""


class NoRoomError(UnreachableError):
    """The launcher would take the job, but has no room for it now: it is asked again until it has."""


class Launcher(Protocol):
    """How attempts get onto machines. One contract suite (`tests/contract`) holds for all."""

    kind: str
    """`local`, `slurm`, `kubernetes`."""

    def render(self, spec: JobSpec) -> Submission:
        """Returns what `submit` would submit. Pure: equal specs give equal submissions."""

    def submit(self, submission: Submission) -> Handle:
        """Submits. The attempt's claim makes a second submission harmless.

        Raises:
            NoRoomError: the launcher did not take it, and will when others are done.
            UnreachableError: the launcher did not take it, or it is not known whether it did.
            ConfigError: the launcher will never take such a job.
        """

    def query(self, keys: Sequence[str]) -> Mapping[str, JobReport]:
        """Returns a report for every key. Never raises: what could not be asked is `UNKNOWN`. May be some seconds old."""

    def cancel(self, key: str) -> None:
        """Asks a job to stop gracefully: SIGTERM to its agents. Nothing when there is no such job."""

    def release(self, key: str) -> None:
        """Removes what is left of a job that is over and has been decided on: nobody asks about it again. Never raises; may be called often."""
