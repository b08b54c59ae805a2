"""The entry of every compute program: `python -m tasks.<stage>.job --spec FILE [--index I]`.

Reads the task spec, runs the stage's function, leaves the item's record, and turns errors into messages and exit codes.
Imports nothing heavy; never prefect, mlflow or great_expectations.
"""

import argparse
import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from cluster.agent.pulse import own_pulse
from cluster.agent.scratch import EpochScratch
from cluster.environment import PROJECT_DIR
from cluster.layout import ArtifactLayout
from cluster.storage import AlreadyExistsError, FileStorage, make_folder, replace_local
from cluster.unfinished import unfinished_path
from schemas.artifact import FileEntry
from schemas.canonical import canonical_json
from schemas.config import RunConfig
from schemas.errors import HeadraceError, storage_failure
from schemas.exit_code import ExitCode
from schemas.frozen import thaw
from schemas.job import ItemRecord, TaskSpec
from schemas.progress import Notice, NoticeKind, RankPhase, RankProgress
from schemas.stage import Stage

_REPORT_EVERY_S = 0.5
_TELL_EVERY_S = 0.25
"""Ranks tell people no more often how far they are, unless there is news."""
_UNDER_WAY = frozenset({RankPhase.STEPPING, RankPhase.SAVING, RankPhase.VALIDATING})
"""Phases that follow each other in every moment of a training."""


@dataclass(frozen=True)
class ItemOutcome:
    """What an item made."""

    files: tuple[FileEntry, ...]
    """Files, relative to the artifact's folder."""
    output: Mapping[str, Any]
    """What the stage needs to put its manifest together; plain JSON data."""


@dataclass
class ItemTask:
    """One work item as its program sees it."""

    spec: TaskSpec
    config: RunConfig
    index: int
    output_dir: Path
    input_dirs: Mapping[Stage, Path]
    _reported_at: float = field(default=0.0, repr=False)

    @property
    def options(self) -> Mapping[str, Any]:
        """What the control half handed over."""
        return self.spec.job.options

    def temporary(self, name: str) -> Path:
        """Returns a path for unfinished data of this item, unique to this start: beside its final place `name`, in the same folder."""
        final = self.output_dir / name
        make_folder(final.parent)
        return unfinished_path(final, epoch=self.spec.epoch, pid=os.getpid())

    def report(self, done_bytes: int) -> None:
        """Tells the agent how far the item is; cheap enough to call per batch."""
        now = time.time()
        if now - self._reported_at < _REPORT_EVERY_S:
            return
        self._reported_at = now
        _write_progress(
            Path(self.spec.scratch_dir),
            RankProgress(
                rank=self.index,
                pid=os.getpid(),
                phase=RankPhase.STEPPING,
                step=0,
                committed_step=-1,
                total_steps=0,
                at=now,
                figures={"done_bytes": done_bytes},
            ),
        )


@dataclass
class RankTask:
    """One rank of a gang as its program sees it."""

    spec: TaskSpec
    config: RunConfig
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    input_dirs: Mapping[Stage, Path]
    output_dir: Path
    scratch_dir: Path
    _told: tuple[int, RankPhase | None] = (-2, None)
    """Committed step, and phase where that is news."""
    _told_at: float = 0.0

    @property
    def options(self) -> Mapping[str, Any]:
        """What the control half handed over."""
        return self.spec.job.options

    def progress(
        self, phase: RankPhase, *, step: int = 0, committed_step: int = -1, total_steps: int = 0, figures: Mapping[str, float] | None = None
    ) -> None:
        """Tells the agent what this rank is doing: the watchdog at once, people a few times a second or when there is news.

        A small local file is replaced for people, which takes 50 µs, and milliseconds while a checkpoint floods the disk.
        """
        own_pulse().enter(phase)
        news, now = (committed_step, None if phase in _UNDER_WAY else phase), time.monotonic()
        if news == self._told and now - self._told_at < _TELL_EVERY_S:
            return
        self._told, self._told_at = news, now
        _write_progress(
            self.scratch_dir,
            RankProgress(
                rank=self.rank,
                pid=os.getpid(),
                phase=phase,
                step=step,
                committed_step=committed_step,
                total_steps=total_steps,
                at=time.time(),
                figures=dict(figures or {}),
            ),
        )

    def notice(self, kind: NoticeKind, message: str, *, step: int, rank: int | None = None, figures: Mapping[str, float] | None = None) -> None:
        """Says something to people: shown by `headrace status`. For what happens now and then, not at every step.

        Args:
            kind: what it is about.
            message: one line.
            step: updates made by now.
            rank: the rank it is about, default this one; -1: all of them, said by one.
            figures: name → value, units in the names.
        """
        notice = Notice(
            at=time.time(),
            kind=kind,
            epoch=self.spec.epoch,
            rank=self.rank if rank is None else rank,
            step=step,
            message=message,
            figures=dict(figures or {}),
        )
        with EpochScratch(self.scratch_dir).notice(self.rank).open("ab", buffering=0) as file:
            file.write(notice.model_dump_json().encode() + b"\n")


def item_main(run: Callable[[ItemTask], ItemOutcome]) -> NoReturn:
    """Runs one work item and leaves its record, then exits with an `ExitCode`."""
    parser = argparse.ArgumentParser(description="One work item of a sharded stage.")
    parser.add_argument("--spec", type=Path, required=True, help="task spec, JSON")
    parser.add_argument("--index", type=int, required=True, help="work item, 0-based")
    arguments = parser.parse_args()
    _guarded(lambda: run_item(run, spec=_load_spec(arguments.spec), index=arguments.index))


def rank_main(run: Callable[[RankTask], None]) -> NoReturn:
    """Runs one rank of a gang, then exits with an `ExitCode`. The rank's place comes from the environment (RANK, WORLD_SIZE, …)."""
    parser = argparse.ArgumentParser(description="One rank of a gang.")
    parser.add_argument("--spec", type=Path, required=True, help="task spec, JSON")
    arguments = parser.parse_args()

    def start() -> None:
        spec = _load_spec(arguments.spec)
        run(
            RankTask(
                spec=spec,
                config=config_of(spec),
                rank=int(os.environ["RANK"]),
                world_size=int(os.environ["WORLD_SIZE"]),
                local_rank=int(os.environ["LOCAL_RANK"]),
                local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
                input_dirs={stage: Path(folder) for stage, folder in spec.input_dirs.items()},
                output_dir=Path(spec.output_dir),
                scratch_dir=Path(spec.scratch_dir),
            )
        )

    _guarded(start)


def run_item(run: Callable[[ItemTask], ItemOutcome], *, spec: TaskSpec, index: int) -> None:
    """Runs one item and publishes its record exclusively, last. A record that exists already is success: another start made it."""
    output_dir = Path(spec.output_dir)
    task = ItemTask(
        spec=spec,
        config=config_of(spec),
        index=index,
        output_dir=output_dir,
        input_dirs={stage: Path(folder) for stage, folder in spec.input_dirs.items()},
    )
    outcome = run(task)
    record = ItemRecord(index=index, epoch=spec.epoch, files=outcome.files, output=outcome.output)
    with contextlib.suppress(AlreadyExistsError):
        FileStorage(output_dir.parent).create_exclusive(ArtifactLayout(output_dir.name).item(spec.job.step_name, index), canonical_json(record))


def config_of(spec: TaskSpec) -> RunConfig:
    """Returns the run's config as it travelled with the job."""
    return RunConfig.model_validate(thaw(spec.job.config))


def _load_spec(path: Path) -> TaskSpec:
    """Reads what to do; makes the user's folder importable (`model.factory`), last, so that nothing in it can stand in for a library."""
    project_dir = os.environ.get(PROJECT_DIR)
    if project_dir and project_dir not in sys.path:
        sys.path.append(project_dir)
    return TaskSpec.model_validate_json(path.read_bytes())


def _write_progress(scratch_dir: Path, progress: RankProgress) -> None:
    replace_local(scratch_dir / f"progress-{progress.rank:06d}.json", progress.model_dump_json().encode())


def _guarded(start: Callable[[], None]) -> NoReturn:
    """The outermost edge of a compute process: an expected error becomes its message, anything else keeps its stack in the log."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        start()
    except HeadraceError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        _exit(error.exit_code)
    except OSError as error:
        failure = storage_failure(error)
        if failure is None:
            traceback.print_exc()
            _exit(ExitCode.BUG)
        sys.stderr.write(f"{type(error).__name__}: {failure}\n")
        _exit(failure.exit_code)
    except MemoryError:
        traceback.print_exc()
        _exit(ExitCode.OUT_OF_MEMORY)
    except Exception:  # noqa: BLE001  # outermost edge: the stack goes to the log, the class to the exit code
        traceback.print_exc()
        _exit(ExitCode.BUG)
    _exit(ExitCode.DONE)


def _exit(code: ExitCode) -> NoReturn:
    """Ends the process at once after flushing: libraries' exit handlers (gloo, DeepSpeed) may hang when a peer is gone."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))
