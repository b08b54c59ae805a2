"""What a rank says of itself reaches its agent: progress, signs of life and notices."""

from pathlib import Path

import pytest

from cluster.agent.pulse import PulseBoard, own_pulse
from cluster.agent.scratch import EpochScratch
from cluster.environment import PULSE
from schemas.job import Notice, NoticeKind, RankPhase, TaskSpec
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


def test_notices_are_lines_in_the_ranks_own_file(task: RankTask, tmp_path: Path) -> None:
    task.notice(NoticeKind.BATCH_SKIPPED, "update 4 is skipped", step=4, rank=-1, figures={"loss": 9.5})
    task.notice(NoticeKind.CHECKPOINT_FAILED, "no space", step=5)
    lines = EpochScratch(tmp_path).notice(1).read_text().splitlines()
    skipped, failed = (Notice.model_validate_json(line) for line in lines)
    assert (skipped.kind, skipped.rank, skipped.step, skipped.epoch, skipped.figures) == (NoticeKind.BATCH_SKIPPED, -1, 4, 3, {"loss": 9.5})
    assert (failed.rank, failed.message) == (1, "no space")
