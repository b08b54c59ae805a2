"""What a rank says of itself reaches its agent: progress, signs of life and notices."""

import time
from pathlib import Path

import pytest

from cluster.agent.pulse import PulseBoard, own_pulse
from cluster.agent.scratch import EpochScratch
from cluster.environment import PULSE
from schemas.job import TaskSpec
from schemas.progress import Notice, NoticeKind, RankPhase
from tasks import entry
from tasks.entry import RankTask
from tests.chaos.live_training import tiny_config
from tests.fakes.job_request import gang_request


@pytest.fixture
def task(tmp_path: Path) -> RankTask:
    spec = TaskSpec(job=gang_request(tmp_path), epoch=3, input_dirs={}, output_dir=str(tmp_path), scratch_dir=str(tmp_path))
    return RankTask(
        spec=spec,
        config=tiny_config(),
        rank=1,
        world_size=2,
        local_rank=1,
        local_world_size=2,
        input_dirs={},
        output_dir=tmp_path,
        scratch_dir=tmp_path,
    )


def test_a_phase_is_told_twice_for_people_and_for_the_watchdog(task: RankTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = PulseBoard([0, 1], folder=tmp_path)
    monkeypatch.setenv(PULSE, board.place(1))
    own_pulse.cache_clear()
    task.progress(RankPhase.VALIDATING, step=4)
    own_pulse.cache_clear()
    (told,) = EpochScratch(tmp_path).progress()
    assert (told.rank, told.phase, told.step) == (1, RankPhase.VALIDATING, 4)
    assert [pulse.phase for pulse in board.read()] == [RankPhase.STARTING, RankPhase.VALIDATING]
    board.close()


def test_people_are_told_of_news_at_once_and_of_steps_now_and_then(task: RankTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing a file at every step took two per cent of training while checkpoints flooded the disk."""

    def told() -> tuple[RankPhase, int, int]:
        (progress,) = EpochScratch(tmp_path).progress()
        return (progress.phase, progress.step, progress.committed_step)

    now_and_then_s = entry._TELL_EVERY_S
    monkeypatch.setattr(entry, "_TELL_EVERY_S", 3600.0)  # a busy machine may rest for longer between two steps
    task.progress(RankPhase.COMPILING, step=0)
    task.progress(RankPhase.STEPPING, step=1)
    assert told() == (RankPhase.STEPPING, 1, -1)
    task.progress(RankPhase.SAVING, step=2)
    task.progress(RankPhase.STEPPING, step=3)
    assert told() == (RankPhase.STEPPING, 1, -1), "soon enough"
    task.progress(RankPhase.STEPPING, step=4, committed_step=2)
    assert told() == (RankPhase.STEPPING, 4, 2)
    task.progress(RankPhase.FINISHED, step=5, committed_step=2)
    assert told() == (RankPhase.FINISHED, 5, 2)
    monkeypatch.setattr(entry, "_TELL_EVERY_S", now_and_then_s)
    time.sleep(0.3)
    task.progress(RankPhase.FINISHED, step=6, committed_step=2)
    assert told() == (RankPhase.FINISHED, 6, 2)


def test_notices_are_lines_in_the_ranks_own_file(task: RankTask, tmp_path: Path) -> None:
    task.notice(NoticeKind.BATCH_SKIPPED, "update 4 is skipped", step=4, rank=-1, figures={"loss": 9.5})
    task.notice(NoticeKind.CHECKPOINT_FAILED, "no space", step=5)
    lines = EpochScratch(tmp_path).notice(1).read_text().splitlines()
    skipped, failed = (Notice.model_validate_json(line) for line in lines)
    assert (skipped.kind, skipped.rank, skipped.step, skipped.epoch, skipped.figures) == (NoticeKind.BATCH_SKIPPED, -1, 4, 3, {"loss": 9.5})
    assert (failed.rank, failed.message) == (1, "no space")
