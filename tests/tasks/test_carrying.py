"""Raw files that pods do not see: they go there through a bucket, once and whole, and nothing of them stays."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.mirror import Mirror
from cluster.s3_storage import S3Storage
from cluster.storage import hash_file
from schemas.errors import InputError, InterruptedRunError
from schemas.job import TaskSpec
from schemas.manifest import InputFile
from schemas.stage import Stage
from tasks.carrying import CARRIED, carry_unseen, drop_carried, place_of
from tasks.entry import ItemTask
from tests.fakes.in_process_work import InProcessWork, config_with
from tests.fakes.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.slow

STEP = "scan"


class BucketWork(InProcessWork):
    """A stage in the making on a cluster of pods that share a bucket and one volume."""

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        pods = {"kind": "kubernetes", "kubernetes": {"volumes": [{"mount": str(folder / "mounted"), "claim": "corpora"}]}}
        super().__init__(folder, Stage.VALIDATE, config_with(cluster=pods), {})
        self.mirror: Any = mirror
        self.storage: Any = mirror.storage
        self.bench = SimpleNamespace(stop_requested=lambda: self.stops)
        self.stops = False

    def carry(self, *groups: list[InputFile]) -> Any:
        return carry_unseen(self, dict(enumerate(groups)), step_name=STEP)  # type: ignore[arg-type]

    def carried(self) -> list[str]:
        return sorted(self.storage.names(f"{self.key}/{CARRIED}"))


@pytest.fixture
def work(tmp_path: Path, s3_bucket: S3Server) -> Iterator[BucketWork]:
    storage = S3Storage(f"s3://{BUCKET}/carrying-{secrets.token_hex(4)}")
    with Mirror.open(storage, folder=tmp_path / "cache", most_bytes=1_000_000) as mirror:
        yield BucketWork(tmp_path, mirror)


def raw(folder: Path, name: str, text: str) -> InputFile:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return InputFile(source="s", path=str(path), relative_path=name, size=path.stat().st_size, xxh3=hash_file(path))


def test_what_pods_do_not_see_is_brought_to_the_items_that_read_it_and_then_gone(work: BucketWork, tmp_path: Path) -> None:
    first, same, other = raw(tmp_path, "a/1.txt", "one"), raw(tmp_path, "a/2.txt", "one"), raw(tmp_path, "a/3.txt", "other")
    seen = raw(tmp_path, "mounted/4.txt", "on a volume")
    reads = work.carry([first, seen], [same, other])
    assert [(read.item, read.file.xxh3) for read in reads] == [(0, first.xxh3), (1, first.xxh3), (1, other.xxh3)]
    assert work.carried() == sorted([first.xxh3, other.xxh3])
    assert len(work.notes) == 1
    node = Mirror.open(work.storage, folder=tmp_path / "node", most_bytes=1_000_000)
    spec = work.task_spec(STEP, options={}).model_copy(update={"output_dir": str(node.bring(work.key, [read.file for read in reads]))})
    task = ItemTask(TaskSpec.model_validate(spec.model_dump()), work.config, 0, Path(spec.output_dir), {})
    assert [place_of(task, file).read_text() for file in (first, same, other)] == ["one", "one", "other"]
    assert place_of(task, first) != Path(first.path)
    assert place_of(task, seen) == Path(seen.path)
    node.close()
    drop_carried(work)  # type: ignore[arg-type]
    assert work.carried() == []


def test_finished_items_and_what_is_there_cost_nothing_again(work: BucketWork, tmp_path: Path) -> None:
    done, due = raw(tmp_path, "1.txt", "one"), raw(tmp_path, "2.txt", "two")
    work.storage.create_exclusive(work.layout.item(STEP, 0), b"{}")
    assert [read.item for read in work.carry([done], [due])] == [1]
    assert work.carried() == [due.xxh3]
    Path(due.path).unlink()  # a file that is there already is not opened
    assert len(work.carry([done], [due])) == 1


def test_a_file_that_is_not_what_was_planned_is_refused_and_does_not_get_there(work: BucketWork, tmp_path: Path) -> None:
    changed, missing = raw(tmp_path, "1.txt", "one"), raw(tmp_path, "2.txt", "two")
    Path(changed.path).write_text("two")
    Path(missing.path).unlink()
    with pytest.raises(InputError, match=r"1\.txt: changed while the corpus was being made"):
        work.carry([changed])
    with pytest.raises(InputError, match=r"2\.txt: cannot be read"):
        work.carry([missing])
    assert work.carried() == []


def test_a_wish_to_stop_is_heard_between_files(work: BucketWork, tmp_path: Path) -> None:
    work.stops = True
    with pytest.raises(InterruptedRunError):
        work.carry([raw(tmp_path, "1.txt", "one")])


def test_where_storage_is_a_folder_nothing_is_carried(tmp_path: Path) -> None:
    work = InProcessWork(tmp_path, Stage.VALIDATE, config_with(cluster={"kind": "kubernetes"}), {})
    assert carry_unseen(work, {0: [raw(tmp_path, "1.txt", "one")]}, step_name=STEP) == ()  # type: ignore[arg-type]
