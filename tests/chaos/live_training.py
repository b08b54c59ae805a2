"""A training as the pipeline runs it, on made-up tokens: the real control half, supervisor, launcher, agents, zygotes and ranks, without
Prefect and the stages before. It lasts seconds, and faults happen to its ranks.
"""

import contextlib
import copy
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from cluster.attempt import list_attempts, read_exit, read_spec, read_verdict
from cluster.job_view import JobView
from cluster.launchers import launcher_for
from cluster.launchers.protocol import Launcher
from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from schemas.artifact import Provenance
from schemas.attempt import EpochRecord, ExitRecord, Incident
from schemas.config import RunConfig
from schemas.errors import HeadraceError
from schemas.job import JobSpec
from schemas.progress import MetricPoint
from schemas.stage import Stage
from tasks.identity import identity_of
from tasks.store import Store
from tasks.train.build import build
from tasks.work import Bench, Draft, Work
from tests.chaos.injector import Faults
from tests.chaos.struck import Struck
from tests.chaos.training_inputs import INPUT_KEYS, input_record, make_inputs
from tests.fakes.plain_hashes import PlainHashes
from tests.fakes.tiny_training import small_config

KEY = "train/tiny-000000000000"
_PROVENANCE = Provenance(run_id="chaos", created_at="2026-01-01T00:00:00+00:00", created_by="me@here", argv=(), commit="", versions={})


_CHANGES: Mapping[str, Any] = {
    "training__steps": 40,
    "training__global_batch_size": 8,
    "checkpoint": {"every_steps": 5},
    "tracking": {"validate_every_steps": 1000, "validation_sequences": 4, "sample_tokens": 0},
    "cluster": {"ranks_per_node": 2, "threads_per_rank": 1, "lost_after_s": 20.0},
}


def tiny_config(**changes: Any) -> RunConfig:
    """Returns the recipe of a training on two ranks that lasts seconds; `changes` are dotted keys with `__` for the dot."""
    return small_config(Path("nowhere"), **{**copy.deepcopy(_CHANGES), **changes})


@dataclass
class LiveTraining:
    """One training artifact in a storage of its own."""

    folder: Path
    config: RunConfig = field(default_factory=tiny_config)
    on_view: Callable[[JobView], None] = lambda _: None
    """Sees the job at every poll of its supervisor, and may act on it."""
    job_changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the job spec that differ."""
    paced: bool = True
    """Whether steps wait for a checkpoint that is being written; see `tests.chaos.faulty_rank.Injector`."""
    launcher: Launcher | None = None
    """How its jobs get onto machines; None: as the recipe says."""
    stop_requested: Callable[[], bool] = lambda: False
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root, self.project = self.folder / "data", self.folder / "project"
        self.project.mkdir(parents=True, exist_ok=True)
        self.struck = Struck(self.project)
        self.storage = FileStorage(self.root)
        self.layout = ArtifactLayout(KEY)
        self.artifact_dir = self.root / KEY
        if not (self.root / INPUT_KEYS[Stage.TOKENIZE]).exists():
            make_inputs(self.root, vocab_size=self.config.tokenizer.vocab_size, length=self.config.tokenization.sequence_length)

    def run(self, faults: Faults | None = None) -> Draft:
        """Trains to the end and returns the draft, whose content hash stands for the final state. Raises what a run would show."""
        inputs = {stage: input_record(self.root, stage) for stage in INPUT_KEYS}
        contents = {stage: record.content_hash for stage, record in inputs.items()}
        identity = identity_of(Stage.TRAIN, config=self.config, inputs=contents, hashes=PlainHashes(), project_dir=self.project)
        work = _FaultyWork(bench=self._bench(), identity=identity, key=KEY, inputs=inputs)
        object.__setattr__(work, "faults", faults or Faults())
        object.__setattr__(work, "job_changes", self.job_changes)
        object.__setattr__(work, "paced", self.paced)
        object.__setattr__(work, "launcher", self.launcher)
        try:
            return build(work)
        finally:
            self._await_the_end()

    def error(self, faults: Faults | None = None) -> HeadraceError:
        """Trains, and returns the error that it must end with."""
        try:
            draft = self.run(faults)
        except HeadraceError as error:
            return error
        raise AssertionError(f"it must not succeed: {draft.summary}")

    @contextlib.contextmanager
    def meanwhile(self, acts: Mapping[int, Callable[[], None]], *, timeout_s: float = 90.0) -> Iterator[None]:
        """While its body runs, does something from outside once a fault, by its number, has struck; then lets a rank that it holds go on."""
        ending = threading.Event()

        def act_when_due() -> None:
            for number, act in acts.items():
                while not self.struck.count(number):
                    if ending.wait(0.01):
                        return
                act()
                self.struck.let_go(number)

        with ThreadPoolExecutor(max_workers=1) as pool:
            acting = pool.submit(act_when_due)
            try:
                yield
            finally:
                ending.set()
            acting.result(timeout=timeout_s)

    # ---- what is left of it ------------------------------------------------------------------------------------------

    @property
    def attempts(self) -> tuple[int, ...]:
        """Numbers of the attempts."""
        return list_attempts(self.storage, self.layout, step_name="")

    def exit_record(self, attempt: int = -1) -> ExitRecord:
        """How an attempt ended, the newest by default."""
        record = read_exit(self.storage, self.layout.attempt("", self.attempts[attempt]))
        assert record is not None, f"no exit record of attempt {attempt}"
        return record

    def verdicts(self) -> list[str]:
        """What the supervisor decided after each attempt, in order; attempts that nobody decided about are left out."""
        found = [read_verdict(self.storage, self.layout.attempt("", number)) for number in self.attempts]
        return [verdict.decision for verdict in found if verdict is not None]

    def incidents(self) -> list[Incident]:
        """What happened, over all attempts, as the exit records tell."""
        return [incident for number in range(len(self.attempts)) for incident in self.exit_record(number).incidents]

    def epochs(self) -> list[EpochRecord]:
        """Every start of ranks."""
        return [EpochRecord.model_validate_json(self.storage.read(f"{self.layout.epochs}/{name}")) for name in self.storage.names(self.layout.epochs)]

    def commits(self) -> list[int]:
        """Committed steps, ascending."""
        return [int(name[5:13]) for name in self.storage.names(self.layout.commits)]

    def points(self) -> list[MetricPoint]:
        """All metric points, in order of epochs and steps."""
        lines: list[str] = []
        for name in self.storage.names(self.layout.metrics):
            lines += self.storage.read(f"{self.layout.metrics}/{name}").decode().splitlines()
        return [MetricPoint.model_validate_json(line) for line in lines]

    def first_steps(self) -> dict[int, int]:
        """Epoch → the first step that rank 0 made in it; epochs without one are left out."""
        first: dict[int, int] = {}
        for point in self.points():
            first.setdefault(point.epoch, point.step)
        return first

    def log(self) -> str:
        """Everything that agents and ranks of all attempts said."""
        parts = [path.read_text(errors="replace") for path in sorted(self.artifact_dir.glob("attempts/*/logs/*"))]
        return "\n".join(parts)

    def quarantined(self) -> list[dict[str, Any]]:
        """The markers of withdrawn commits."""
        return [json.loads(path.read_bytes()) for path in sorted(self.artifact_dir.glob("quarantine/*.json"))]

    def processes(self) -> list[psutil.Process]:
        """Live processes of this training: agents, zygotes, ranks and what those start. Zygotes and ranks name no folder; their cwd is ours."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.cwd() == str(self.project) or str(self.folder) in " ".join(process.cmdline())
                if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and ours:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def agents(self) -> list[psutil.Process]:
        """Live agents, by node."""
        agents = list[tuple[int, psutil.Process]]()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended since it was listed
                words = process.cmdline()
                if "cluster.agent.agent" in words:
                    agents.append((int(words[words.index("--node-rank") + 1]), process))
        return [agent for _, agent in sorted(agents, key=lambda found: found[0])]

    def zygote(self) -> psutil.Process:
        """The zygote of the only agent; ranks are forks of it and look alike."""
        (agent,) = self.agents()
        (zygote,) = agent.children()
        return zygote

    def kill_zygote(self, timeout_s: float = 30.0) -> None:
        """Kills the zygote and waits until its ranks have ended, too: one that is held makes no step between that death and its own."""
        zygote = self.zygote()
        ranks = {rank.pid for rank in zygote.children()}
        zygote.kill()
        deadline = time.monotonic() + timeout_s
        while left := ranks & {process.pid for process in self.processes()}:
            assert time.monotonic() < deadline, f"ranks outlive their zygote: {sorted(left)}"
            time.sleep(0.02)

    def spec(self, attempt: int = -1) -> JobSpec:
        """The spec of an attempt."""
        return read_spec(self.storage, self.layout.attempt("", self.attempts[attempt]))

    def sweep(self) -> None:
        """Kills what a failed test left."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def _await_the_end(self, timeout_s: float = 60.0) -> None:
        """Waits for processes that are about to end: an agent writes its exit record before it leaves."""
        deadline = time.monotonic() + timeout_s
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _bench(self) -> Bench:
        return Bench(
            run_id="chaos",
            run_name="chaos",
            config=self.config,
            storage=self.storage,
            store=Store(self.storage),
            state_dir=self.folder / "state",
            project_dir=self.project,
            provenance=_PROVENANCE,
            note=lambda _stage, message: self.notes.append(message),
            on_view=lambda _stage, view: self.on_view(view),
            stop_requested=self.stop_requested,
        )


class _FaultyWork(Work):
    """The stage's own work, with ranks to which faults happen."""

    faults: Faults
    job_changes: Mapping[str, Any]
    paced: bool
    launcher: Launcher | None

    def run_gang(self, *, module: str, options: Mapping[str, Any] | None = None, **shape: Any) -> ExitRecord:
        assert module == "tasks.train.job"
        own = {"faults": self.faults.to_options(), "paced": self.paced}
        return super().run_gang(module="tests.chaos.faulty_rank", options={**(options or {}), **own}, **shape)

    def _run(self, request: JobSpec, **options: Any) -> ExitRecord:
        with mock.patch("cluster.launchers.launcher_for", lambda config: self.launcher or launcher_for(config)):
            return super()._run(request.model_copy(update=dict(self.job_changes)), **options)
