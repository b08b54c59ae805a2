"""Whether the store has room for a plan: warned from above, refused from below, by bytes and by inodes."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.quota import Room
from schemas.config import RunConfig
from schemas.corpus_config import SourceConfig
from schemas.plan import Action, PlannedStage
from schemas.sizing import training_size
from schemas.stage import Stage
from tasks import store_room
from tasks.planning import make_plan
from tasks.store_room import Need, judge
from tests.fakes.in_process_work import config_with
from tests.fakes.remote_text import InMemory

GB = 10**9


def room(*, gb: float | None = None, inodes: int | None = None, source: str = "the file system of /data") -> Room:
    return Room(source, free_bytes=None if gb is None else int(gb * GB), free_inodes=inodes)


TRAINING = {Stage.TRAIN: Need(8 * GB, num_inodes=700, least_bytes=4 * GB, least_inodes=20), Stage.EXPORT: Need(GB, num_inodes=60)}


@pytest.mark.parametrize("enough", [room(gb=9, inodes=760), room(), room(gb=9), room(inodes=760)])
def test_enough_is_not_spoken_of(enough: Room) -> None:
    assert judge(TRAINING, [enough]).warnings == ()


def test_too_little_for_all_is_a_warning_that_names_who_counts_and_what_takes_most() -> None:
    verdict = judge(TRAINING, [room(gb=5, inodes=760)])
    assert verdict.refusal == ""
    (warning,) = verdict.warnings
    assert "the file system of /data leaves 5.00 GB; this run may need 9.00 GB (train 8.00 GB, export 1.00 GB)" in warning


def test_too_little_to_go_on_at_all_is_refused() -> None:
    verdict = judge(TRAINING, [room(gb=3, inodes=10)])
    assert verdict.refusal == (
        "the file system of /data leaves 3.00 GB, and this run cannot do with less than 4.00 GB; "
        "the file system of /data leaves 10 files, and this run cannot do with less than 21 files"
    )
    assert len(verdict.warnings) == 2


def test_every_quota_counts() -> None:
    quota = room(inodes=100, source="the quota of group 7")
    (warning,) = judge(TRAINING, [room(gb=99, inodes=10**6), quota]).warnings
    assert warning.startswith("the quota of group 7 leaves 100 files; this run may need 760 files")


def configured(tmp_path: Path, root: Path) -> RunConfig:
    (tmp_path / "text").mkdir(exist_ok=True)
    (tmp_path / "text" / "a.txt").write_text("text")
    sources = {"sources": [str(tmp_path / "text")]}
    model = {"config": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}}
    return config_with(corpus=sources, storage={"root": str(root)}, state=str(tmp_path / "state"), model=model)


def test_a_plan_on_an_ordinary_disk_says_nothing(tmp_path: Path) -> None:
    plan = make_plan(configured(tmp_path, tmp_path / "data"))
    assert (plan.warnings, plan.lacks_room) == ((), "")


def test_remote_text_needs_room_for_itself_while_it_is_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, config = InMemory(), configured(tmp_path, tmp_path / "data")
    place.put("a.txt", bytes(1_000_000))
    (tmp_path / "text" / "a.txt").write_bytes(bytes(1_000_000))
    remote = config.model_copy(update={"corpus": config.corpus.model_copy(update={"sources": (SourceConfig(path=place.url),)})})
    planned = [PlannedStage(stage=Stage.VALIDATE, action=Action.BUILD, key="", fingerprint="", reasons=())]

    def warned(config: RunConfig, *, free: int) -> bool:
        monkeypatch.setattr(store_room, "rooms_of", lambda *_, **__: [Room("a disk", free_bytes=free, free_inodes=None)])
        return bool(store_room.judge_room(config, planned, size=training_size(config), folder=tmp_path).warnings)

    assert [warned(each, free=11_500_000) for each in (config, remote)] == [False, True]
    assert not warned(remote, free=12_500_000)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk that takes a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=100", "tmpfs", str(folder)), check=True)
    yield folder
    subprocess.run(("umount", str(folder)), check=True)


@pytest.mark.mount
def test_a_plan_on_a_full_disk_says_so_and_a_run_is_refused_before_it_begins(tmp_path: Path, small: Path) -> None:
    plan = make_plan(configured(tmp_path, small / "data"))
    assert f"the file system of {small}/data leaves 0.00 GB, and this run cannot do with less than" in plan.lacks_room
    assert plan.lacks_room in plan.warnings[0]
    assert any("files; this run may need" in warning for warning in plan.warnings)
