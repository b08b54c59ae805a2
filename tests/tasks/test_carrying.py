"""Raw files that pods do not see: they go there through a bucket, once and whole, and nothing of them stays."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import xxhash

from cluster.mirror import Mirror
from cluster.remote_files import RemoteFiles
from cluster.s3_storage import S3Storage
from cluster.storage import hash_file
from schemas.errors import InputError, InterruptedRunError
from schemas.job import TaskSpec
from schemas.manifest import InputFile
from schemas.stage import Stage
from tasks import carrying
from tasks.carrying import CARRIED, carry_unseen, drop_carried, place_of
from tasks.entry import ItemTask
from tests.fakes.in_process_work import InProcessWork, config_with
from tests.fakes.remote_text import InMemory
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


def test_where_storage_is_a_folder_nothing_that_lies_on_this_machine_is_carried(tmp_path: Path) -> None:
    work = InProcessWork(tmp_path, Stage.VALIDATE, config_with(cluster={"kind": "kubernetes"}), {})
    assert carry_unseen(work, {0: [raw(tmp_path, "1.txt", "one")]}, step_name=STEP) == ()  # type: ignore[arg-type]


# ---- files behind URLs --------------------------------------------------------------------------------------------------


class FolderWork(InProcessWork):
    """A stage in the making on one machine."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Stage.VALIDATE, config_with(), {})
        self.bench = SimpleNamespace(stop_requested=lambda: False)

    carry = BucketWork.carry
    carried = BucketWork.carried


@pytest.fixture(params=["folder", "bucket"])
def any_work(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return FolderWork(tmp_path / "data") if request.param == "folder" else request.getfixturevalue("work")


@pytest.fixture
def place() -> InMemory:
    return InMemory()


def remote(place: InMemory, name: str, text: str) -> InputFile:
    place.put(name, text.encode())
    return InputFile(source="s", path=f"{place.url}/{name}", relative_path=name, size=len(text), xxh3=xxhash.xxh3_128(text.encode()).hexdigest())


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs of all files that are fetched."""
    urls: list[str] = []
    fetch = RemoteFiles.fetch
    monkeypatch.setattr(RemoteFiles, "fetch", lambda self, url, **more: (urls.append(url), fetch(self, url, **more))[1])
    return urls


def test_remote_files_lie_in_storage_while_they_are_scanned_each_once(any_work: Any, place: InMemory, fetched: list[str], tmp_path: Path) -> None:
    one, same, other = remote(place, "1.txt", "one"), remote(place, "2.txt", "one"), remote(place, "3.txt", "other")
    here = raw(tmp_path, "mounted/4.txt", "on this machine")
    reads = any_work.carry([one, here], [same, other])
    assert [(read.item, read.file.xxh3) for read in reads] == [(0, one.xxh3), (1, one.xxh3), (1, other.xxh3)]
    assert any_work.carried() == sorted([one.xxh3, other.xxh3])
    assert [any_work.storage.read(f"{any_work.key}/{CARRIED}/{file.xxh3}") for file in (one, other)] == [b"one", b"other"]
    assert [note for note in any_work.notes if "2 raw files, 8 bytes, are fetched" in note]
    assert len(fetched) == 2
    any_work.carry([one, here], [same, other])
    assert len(fetched) == 2
    drop_carried(any_work)
    assert any_work.carried() == []


def test_items_find_remote_files_in_their_folder(place: InMemory, tmp_path: Path) -> None:
    work, file = FolderWork(tmp_path), remote(place, "1.txt", "one")
    work.carry([file])
    task = ItemTask(work.task_spec(STEP, options={}), work.config, 0, work.output_dir, {})
    assert place_of(task, file).read_text() == "one"
    assert [path.name for path in (work.output_dir / CARRIED).iterdir()] == [file.xxh3]


def test_remote_files_of_finished_items_stay_where_they_are(any_work: Any, place: InMemory, fetched: list[str]) -> None:
    done, due = remote(place, "1.txt", "one"), remote(place, "2.txt", "two")
    any_work.storage.create_exclusive(any_work.layout.item(STEP, 0), b"{}")
    assert [read.item for read in any_work.carry([done], [due])] == [1]
    assert fetched == [due.path]


def test_a_remote_file_that_is_not_what_was_planned_is_refused_and_nothing_of_it_stays(any_work: Any, place: InMemory) -> None:
    changed, gone = remote(place, "1.txt", "one"), remote(place, "2.txt", "two")
    place.put("1.txt", b"six")
    place.remove("2.txt")
    with pytest.raises(InputError, match=r"1\.txt: changed while the corpus was being made"):
        any_work.carry([changed])
    with pytest.raises(InputError, match=r"2\.txt: is not there any more"):
        any_work.carry([gone])
    assert any_work.carried() == []
    folder = any_work.output_dir if any_work.mirror is None else any_work.mirror.folder(any_work.key)
    assert list((folder / CARRIED).iterdir()) == []


def test_what_was_fetched_before_a_failure_is_not_fetched_again(any_work: Any, place: InMemory, fetched: list[str]) -> None:
    files = [remote(place, f"{number}.txt", f"text {number}") for number in range(9)]
    place.remove("8.txt")
    with pytest.raises(InputError, match=r"8\.txt"):
        any_work.carry(files)
    there = set(any_work.carried())
    place.put("8.txt", b"text 8")
    fetched.clear()
    any_work.carry(files)
    assert sorted(fetched) == sorted(file.path for file in files if file.xxh3 not in there)
    assert len(any_work.carried()) == 9


def test_a_kill_in_the_middle_costs_what_was_under_way(place: InMemory, fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, files = FolderWork(tmp_path), [remote(place, f"{number}.txt", f"text {number}") for number in range(6)]
    child = os.fork()
    if child == 0:
        fetch, calls = RemoteFiles.fetch, iter(range(6))

        def killed(self: RemoteFiles, url: str, *, target: Path) -> Any:
            if next(calls) == 3:
                target.write_bytes(b"tex")
                os.kill(os.getpid(), signal.SIGKILL)
            return fetch(self, url, target=target)

        monkeypatch.setattr(carrying, "_AT_A_TIME", 1)
        monkeypatch.setattr(RemoteFiles, "fetch", killed)
        work.carry(files)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(work.carried()) == 3
    work.carry(files)
    assert sorted(fetched) == [file.path for file in files[3:]]
    assert [(work.output_dir / CARRIED / file.xxh3).read_text() for file in files] == [f"text {number}" for number in range(6)]
    drop_carried(work)  # type: ignore[arg-type]
    assert not (work.output_dir / CARRIED).exists()
