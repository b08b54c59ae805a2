"""A job of a test whose storage is real and whose launcher and clock are scripted: no process is started, and no time passes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.job_view import JobView
from cluster.launchers.protocol import JobState
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.process import process_table
from cluster.storage import FileStorage
from cluster.supervisor import run_job
from schemas.attempt import Cause, Claim, ExitRecord, Incident
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.job import JobSpec
from schemas.progress import Heartbeat, RankPhase, RankProgress
from tests.fakes.job_request import ARTIFACT, gang_request
from tests.fakes.scripted_launcher import Script, ScriptedLauncher, StillClock

LAYOUT = ArtifactLayout(ARTIFACT)


class ScriptedJob:
    """A storage, a launcher with scripts, a clock, and the request."""

    def __init__(self, tmp_path: Path, *scripts: Script) -> None:
        self.storage = FileStorage(tmp_path / "data")
        self.launcher = ScriptedLauncher(list(scripts))
        self.clock, self._began = StillClock(), time.time()
        self.request = gang_request(tmp_path)
        self.views: list[JobView] = []

    def run(self, **options: Any) -> ExitRecord:
        clocks = {"clock": self.clock, "sleep": self.clock.sleep, "wall": lambda: self._began + self.clock.now}
        options = {"request": self.request, "stop_requested": lambda: False, **clocks, **options}
        return run_job(options.pop("request"), storage=self.storage, launcher=self.launcher, on_view=self.views.append, **options)

    def attempt(self, number: int) -> AttemptLayout:
        return LAYOUT.attempt(self.request.step_name, number)

    def put(self, key: str, value: Any) -> None:
        self.storage.create_exclusive(key, canonical_json(value))

    def claim(self, spec: JobSpec, *, dead: bool = False) -> None:
        """The attempt's agent claims it: one of another machine, or a dead one of this machine."""
        table = process_table() if dead else "another boot/1"
        claim = Claim(key=spec.key, host="node", pid=2**22 + 1, pid_started=1.0, process_table=table, submission="s", claimed_at=time.time())
        self.put(LAYOUT.attempt(spec.step_name, spec.attempt).claim, claim)

    def beat(self, spec: JobSpec, *, sequence: int = 0, step: int = 7, items_done: int = 0) -> None:
        rank = RankProgress(rank=0, pid=1, phase=RankPhase.STEPPING, step=step, committed_step=5, total_steps=20, at=time.time())
        beat = Heartbeat(
            key=spec.key, node_rank=0, host="node", agent_pid=1, epoch=3, sequence=sequence, at=time.time(), ranks=(rank,), items_done=items_done
        )
        self.put(LAYOUT.attempt(spec.step_name, spec.attempt).heartbeat(0, sequence), beat)

    def end(self, spec: JobSpec, code: ExitCode = ExitCode.DONE, cause: Cause = Cause.FINISHED, committed_step: int = -1) -> None:
        incidents = ()
        if code is not ExitCode.DONE:
            incidents = (
                Incident(
                    epoch=0,
                    at=1.0,
                    cause=cause,
                    rank=1,
                    step=7,
                    committed_step=committed_step,
                    exit_status=1,
                    evidence=("x",),
                    decision="stop",
                    reason="y",
                ),
            )
        record = ExitRecord(key=spec.key, exit_code=code, cause=cause, message=f"ended: {cause.value}", epoch=0, incidents=incidents, ended_at=1.0)
        self.put(LAYOUT.attempt(spec.step_name, spec.attempt).exit, record)


def ends(stage: ScriptedJob, code: ExitCode = ExitCode.DONE, cause: Cause = Cause.FINISHED, committed_step: int = -1) -> Script:
    """A job that claims, ends at once and is gone."""

    def script(spec: JobSpec) -> JobState:
        stage.claim(spec)
        stage.end(spec, code, cause, committed_step)
        return JobState.ABSENT

    return script


def runs(stage: ScriptedJob, state: JobState = JobState.RUNNING, *, dead: bool = False) -> Script:
    """A job that claims and gives one sign of life."""

    def script(spec: JobSpec) -> JobState:
        stage.claim(spec, dead=dead)
        stage.beat(spec)
        return state

    return script


def never_starts(state: JobState) -> Script:
    return lambda _spec: state


def raises_at_call(number: int) -> Callable[[], bool]:
    calls = iter(range(1, 1000))

    def asked() -> bool:
        if next(calls) >= number:
            raise KeyboardInterrupt
        return False

    return asked
