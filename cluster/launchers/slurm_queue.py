"""What Slurm says of one user's jobs: its commands called with a bound on time, their answers parsed, and kept for a moment.

A scheduler is a shared resource. One `squeue` answers for all jobs of the user, and the longer nothing changes the rarer it is asked.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.launchers.protocol import JobReport, JobState
from schemas.attempt import Cause

logger = logging.getLogger(__name__)

ANSWER_S = 20.0
"""Longest wait for a command of Slurm's; its own timeouts are about ten seconds."""
LEAST_AGE_S, MOST_AGE_S = 2.0, 30.0
"""An answer is good for so long: at first the former, and as nothing changes ever longer, up to the latter."""
_GROWTH = 0.1
"""Of the time for which nothing has changed."""
_FIELDS = "%A|%T|%r|%S|%N|%j"
"""Job, state, reason, (expected) start, nodes, name: the name last, it may hold anything."""
_PENDING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
_RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
_HELD = re.compile(r"JobHeld|BeginTime|Dependency|Partition(Down|Inactive)|Licenses|Cleaning|Prolog")
"""Reasons to wait that fewer nodes do not change."""
_CAUSES: Mapping[str, Cause] = {
    "CANCELLED": Cause.CANCELLED,
    "PREEMPTED": Cause.PREEMPTION,
    "REVOKED": Cause.PREEMPTION,
    "TIMEOUT": Cause.TIME_LIMIT,
    "DEADLINE": Cause.TIME_LIMIT,
    "NODE_FAIL": Cause.NODE,
    "BOOT_FAIL": Cause.NODE,
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
}
"""Why Slurm ended a job. COMPLETED and FAILED say only how the script ended."""
_ORDER = (JobState.RUNNING, JobState.PENDING, JobState.ENDED)
"""Of several jobs with one key: the one that has most effect."""


class SlurmError(Exception):
    """A command of Slurm's failed, or did not answer."""


def call(argv: Sequence[str], *, stdin: str = "", answer_s: float = ANSWER_S) -> str:
    """Runs a command of Slurm's and returns what it printed.

    Args:
        argv: the command.
        stdin: what it reads.
        answer_s: longest wait for its end; it is killed then.

    Raises:
        SlurmError: it is not there, failed, or did not answer in time.
    """
    if shutil.which(argv[0]) is None:
        raise SlurmError(f"{argv[0]} is not on PATH")
    pipe = subprocess.PIPE
    # A session of its own: Ctrl-C tears no submission apart, and what a site's wrapper around the command has started ends with it.
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            stdout, stderr = process.communicate(stdin, timeout=answer_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise SlurmError(f"{argv[0]} did not answer for {answer_s:g} s") from error
            raise
    if process.returncode != 0:
        raise SlurmError(stderr.strip() or f"{argv[0]} ended with exit code {process.returncode}")
    return stdout


def all_jobs(run: Callable[[Sequence[str]], str] = call) -> dict[str, JobReport]:
    """Returns job name → report of all the user's jobs that Slurm still knows. Raises SlurmError: it does not answer."""
    return parse_queue(run(("squeue", "--noheader", "--me", "--states=all", f"--format={_FIELDS}")))


def parse_queue(text: str) -> dict[str, JobReport]:
    """Returns job name → report from lines of `_FIELDS`. Pure."""
    reports: dict[str, JobReport] = {}
    for line in text.splitlines():
        fields = line.split("|", maxsplit=5)
        if len(fields) != 6:
            continue
        job_id, state, reason, start, nodes, name = (field.strip() for field in fields)
        report = report_of(state, job_id=job_id, reason=reason, start=start, nodes=nodes)
        if name not in reports or _ORDER.index(report.state) < _ORDER.index(reports[name].state):
            reports[name] = report
    return reports


def parse_accounting(text: str, *, key: str) -> JobReport:
    """Returns the report on `key` from lines `JobID|State|NodeList|JobName` of `sacct`. Pure."""
    found = [line.split("|", maxsplit=3) for line in text.splitlines() if line.count("|") >= 3]
    reports = [report_of(state, job_id=job_id, nodes=nodes) for job_id, state, nodes, name in found if name.strip() == key]
    return min(reports, key=lambda report: _ORDER.index(report.state), default=JobReport(JobState.ABSENT))


def report_of(state: str, *, job_id: str, reason: str = "", start: str = "", nodes: str = "") -> JobReport:
    """Returns what a state of Slurm's means. `CANCELLED by 1000` is `CANCELLED`. Pure."""
    word = state.partition(" ")[0].rstrip("+")
    told = state if reason in ("", "None") else f"{state} ({reason})"
    place = "" if nodes in ("(null)", "None assigned") else nodes
    if word in _PENDING:
        held = _HELD.match(reason) is not None
        return JobReport(JobState.PENDING, job_id=job_id, told=told, starts=start if re.match(r"\d", start) else "", held=held)
    if word in _RUNNING:
        return JobReport(JobState.RUNNING, job_id=job_id, told=told, nodes=place)
    return JobReport(JobState.ENDED, job_id=job_id, told=told, nodes=place, cause=_CAUSES.get(word))


@dataclass
class SlurmQueue:
    """The user's jobs as last seen."""

    clock: Callable[[], float] = time.monotonic
    run: Callable[[Sequence[str]], str] = call
    _reports: Mapping[str, JobReport] | None = None
    """None: the last time nobody answered."""
    _asked_at: float = -MOST_AGE_S
    _changed_at: float = 0.0
    _no_accounting: bool = False
    _accounted: dict[str, JobReport] = field(default_factory=dict)
    """By key: what accounting said. An end is final; anything else is asked anew with the queue."""

    def reports(self, keys: Iterable[str]) -> dict[str, JobReport]:
        """Returns a report for every key; `UNKNOWN` when Slurm does not answer."""
        self._refresh()
        return {key: self._report(key) for key in keys}

    def forget(self) -> None:
        """Makes the next question a fresh one: something was changed."""
        self._asked_at, self._changed_at = -MOST_AGE_S, self.clock()

    def _refresh(self) -> None:
        now = self.clock()
        if now - self._asked_at < min(MOST_AGE_S, max(LEAST_AGE_S, _GROWTH * (now - self._changed_at))):
            return
        try:
            reports: Mapping[str, JobReport] | None = all_jobs(self.run)
        except SlurmError as error:
            logger.warning("Slurm does not answer: %s", error)
            reports = None
        self._asked_at = self.clock()  # after the answer: one that took long must not be asked for again at once
        self._accounted = {key: report for key, report in self._accounted.items() if report.state is JobState.ENDED}
        if reports != self._reports:
            self._reports, self._changed_at = reports, self._asked_at

    def _report(self, key: str) -> JobReport:
        if self._reports is None:
            return JobReport(JobState.UNKNOWN)
        return self._reports.get(key) or self._from_accounting(key)

    def _from_accounting(self, key: str) -> JobReport:
        """Returns what accounting remembers of a job that has left the queue; where there is none, the queue's answer stands: no such job."""
        if self._no_accounting:
            return JobReport(JobState.ABSENT)
        if key not in self._accounted:
            self._accounted[key] = self._ask_accounting(key)
        return self._accounted[key]

    def _ask_accounting(self, key: str) -> JobReport:
        what = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State,NodeList,JobName")
        try:
            text = self.run(("sacct", *what, f"--name={key}", "--starttime=now-30days"))
        except SlurmError as error:
            self._no_accounting = "disabled" in str(error) or "not on PATH" in str(error)
            return JobReport(JobState.ABSENT if self._no_accounting else JobState.UNKNOWN)
        return parse_accounting(text, key=key)
