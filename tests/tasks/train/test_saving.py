"""Two ranks that really train, and what becomes of checkpoints: damaged, late, on a full disk, killed in their midst, on the nodes' own disks."""

import random
import shutil
import signal
from pathlib import Path

import pytest

from schemas.checkpoint import QuarantineRecord
from schemas.exit_code import ExitCode
from tests.fakes.live_job import wait_until
from tests.tasks.train.trained_state import PROGRAMS, MakeConfig, MakeGang, assert_equal_state, files_of, newest_commit

pytestmark = pytest.mark.slow


def test_damaged_commits_are_passed_over_marked_and_written_again(gang: MakeGang, make_config: MakeConfig) -> None:
    config = make_config()
    trained, undisturbed = gang("trained"), gang("undisturbed")
    trained.run(config)
    shutil.copytree(trained.artifact_dir, undisturbed.artifact_dir)
    commit = newest_commit(trained.artifact_dir)
    damaged = trained.artifact_dir / commit.folder / "rank-0001.bin"
    content = bytearray(damaged.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)
    (trained.artifact_dir / "commits" / "step-00000004.json").write_bytes(b"{}")
    trained.run(config)
    assert "goes on from step 2" in trained.logs()
    assert damaged.read_bytes() == bytes(content), "the evidence stays"
    again = newest_commit(trained.artifact_dir)
    assert (again.step, again.epoch) == (6, 1)
    assert files_of(trained.artifact_dir, again) == files_of(undisturbed.artifact_dir, newest_commit(undisturbed.artifact_dir))
    markers = [QuarantineRecord.model_validate_json(path.read_bytes()) for path in sorted((trained.artifact_dir / "quarantine").iterdir())]
    assert [marker.step for marker in markers] == [4, 6]
    assert "rank-0001.bin: wrong content" in markers[1].findings[0]


def test_it_never_begins_anew_when_every_commit_is_damaged(gang: MakeGang, make_config: MakeConfig) -> None:
    config = make_config(training__steps=4)
    trained = gang("trained")
    trained.run(config)
    for path in trained.artifact_dir.glob("checkpoints/*/rank-0000.bin"):
        path.write_bytes(path.read_bytes()[:-4])
    before = sorted(path.name for path in (trained.artifact_dir / "commits").iterdir())
    for _ in range(2):
        trained.run(config, expect=ExitCode.VERIFICATION)
        assert "rank-0000.bin: wrong size" in trained.logs()
    assert sorted(path.name for path in (trained.artifact_dir / "commits").iterdir()) == before


def test_old_checkpoints_go_and_left_overs_with_them(gang: MakeGang, make_config: MakeConfig) -> None:
    config = make_config(checkpoint__every_steps=1, checkpoint__keep_last=2, checkpoint__keep_every_steps=3)
    trained = gang("trained")
    trained.run(make_config(training__steps=2, checkpoint__every_steps=2))
    left_over = trained.artifact_dir / "checkpoints" / "step-00000003.e000000"
    left_over.mkdir()
    (left_over / "rank-0000.bin").write_bytes(b"unfinished")
    trained.run(config)
    assert sorted(path.name for path in (trained.artifact_dir / "commits").iterdir()) == [f"step-0000000{step}.json" for step in (3, 5, 6)]
    assert sorted(path.name for path in (trained.artifact_dir / "checkpoints").iterdir()) == [f"step-0000000{step}.e000001" for step in (3, 5, 6)]


def test_a_full_disk_costs_one_checkpoint_and_nothing_else(gang: MakeGang, make_config: MakeConfig) -> None:
    trained, undisturbed = gang("trained"), gang("undisturbed")
    trained.run(make_config(), program=f"{PROGRAMS}:full_disk")
    undisturbed.run(make_config())
    assert "No space left on device" in trained.logs()
    assert sorted(path.name for path in (trained.artifact_dir / "commits").iterdir()) == ["step-00000004.json", "step-00000006.json"]
    assert not (trained.artifact_dir / "checkpoints" / "step-00000002.e000000").exists()
    assert_equal_state(trained.artifact_dir, undisturbed.artifact_dir)
    assert trained.metrics()[-1]["values"]["checkpoint_failures"] == 1


def test_training_goes_on_while_a_checkpoint_is_written(gang: MakeGang, make_config: MakeConfig) -> None:
    """On slow storage most checkpoints are skipped, commits follow late, and the end is what it would be without either."""
    config = make_config(checkpoint__background=True, checkpoint__every_steps=1, training__steps=12)
    calm, late = gang("calm"), gang("late")
    calm.run(make_config(training__steps=12))
    late.run(config, program=f"{PROGRAMS}:slow_disk")
    assert newest_commit(late.artifact_dir).files == newest_commit(calm.artifact_dir).files
    points = late.metrics()
    assert points[-1]["values"]["checkpoint_skipped"] >= 1
    assert points[-1]["values"]["checkpoint_write_s"] > 0.3
    assert "no checkpoint of step" in late.logs()
    assert len(list((late.artifact_dir / "commits").iterdir())) < 12


def test_killed_in_the_middle_of_a_background_save_nothing_is_lost(gang: MakeGang, make_config: MakeConfig) -> None:
    config = make_config(checkpoint__background=True, checkpoint__every_steps=2, training__steps=40)
    calm, killed = gang("calm"), gang("killed")
    calm.run(config)
    for rank in (0, 1):
        statuses = killed.kill_in_save(config, rank=rank, program=f"{PROGRAMS}:slow_disk")
        assert statuses[rank] == -signal.SIGKILL
    killed.run(config)
    assert newest_commit(killed.artifact_dir).files == newest_commit(calm.artifact_dir).files


def sampled_events(stage: int, *, count: int) -> list[tuple[int, int]]:
    """Returns (rank, file event of its writer): of the three saves of six steps, rank 0's writer has more than 60, the other's more than 20."""
    chance = random.Random(stage)
    return [(rank, chance.randrange(60 if rank == 0 else 20)) for rank in (chance.randrange(2) for _ in range(count))]


CRASHES = [(stage, *event) for stage in (1, 2, 3) for event in sampled_events(stage, count=10)]
USUALLY = CRASHES[::15]


@pytest.mark.parametrize(
    ("stage", "rank", "at"),
    [pytest.param(*crash, marks=[] if crash in USUALLY else [pytest.mark.exhaustive]) for crash in CRASHES],
)
def test_a_rank_and_its_writer_may_crash_at_any_file_event(gang: MakeGang, make_config: MakeConfig, stage: int, rank: int, at: int) -> None:
    config = make_config(training__zero_stage=stage)
    calm, crashed = gang("calm"), gang("crashed")
    calm.run(config)
    crashed.start(config, world_size=2, program=f"{PROGRAMS}:crash_in_writer", options={"crash_rank": rank, "crash_at": at})
    assert crashed.server.wait()[rank] == -signal.SIGKILL, crashed.logs()
    crashed.run(config)
    assert newest_commit(crashed.artifact_dir).files == newest_commit(calm.artifact_dir).files
    assert not (crashed.artifact_dir / "quarantine").exists()


def test_a_stop_waits_for_the_checkpoint_on_its_way_and_commits_its_own(gang: MakeGang, make_config: MakeConfig) -> None:
    config = make_config(checkpoint__background=True, checkpoint__every_steps=2, training__steps=5000)
    stopped = gang("stopped")
    statuses = stopped.kill_in_save(config, rank=1, program=f"{PROGRAMS}:slow_disk", number=signal.SIGTERM)
    assert statuses == [ExitCode.INTERRUPTED, ExitCode.INTERRUPTED], stopped.logs()
    assert stopped.metrics()[-1]["step"] == newest_commit(stopped.artifact_dir).step


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_restart_goes_on_from_the_nodes_own_disk(gang: MakeGang, make_config: MakeConfig, tmp_path: Path, stage: int) -> None:
    """Shared storage has step 4 alone, the nodes' own disks every step. Calm all the same; when training is over, nothing of it is left."""
    local = tmp_path / "local"
    calm, killed = gang("calm"), gang("killed")
    calm.run(make_config(training__zero_stage=stage, training__steps=60))
    killed.run(make_config(training__zero_stage=stage, training__steps=4))
    rules = {"every_steps": 1000, "local_dir": str(local), "local_every_steps": 1, "background": True}
    config = make_config(training__zero_stage=stage, training__steps=60, checkpoint=rules)

    def held_by_both() -> set[str]:
        first, second = ({path.stem for path in local.glob(f"killed-*/records/rank-000{rank}/*")} for rank in (0, 1))
        return first & second

    for held_at in (16, 32):  # where rank 0 waits: on a busy disk training might be over before a checkpoint is written
        killed.start(config, world_size=2, program=f"{PROGRAMS}:held", options={"held_rank": 0, "held_at": held_at})
        wait_until((killed.scratch / "held").exists)
        wait_until(lambda: any(name.endswith(f".e{killed.epoch:06d}") for name in held_by_both()))
        killed.kill()
    newest = max(held_by_both())
    killed.kill_at(config, step=1)
    assert f"goes on from step {int(newest[5:13])}, which epoch {int(newest[15:])} left" in killed.logs()
    for path in local.glob("killed-*/checkpoints/*/rank-0001.bin"):
        path.write_bytes(b"")
    killed.run(config)
    assert "goes on from step 4, written by 2 ranks" in killed.logs()
    assert newest_commit(killed.artifact_dir).files == newest_commit(calm.artifact_dir).files
    assert not list(local.iterdir())
