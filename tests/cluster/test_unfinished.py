"""What killed items left goes; what is published, and what others write, stays."""

from pathlib import Path

import pytest

from cluster.storage import FileStorage
from cluster.unfinished import remove_unfinished, unfinished_path


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")


def test_one_writers_files_go_and_only_its(tmp_path: Path) -> None:
    final = tmp_path / "shards" / "train-g0001-00000.parquet"
    mine = [unfinished_path(path, epoch=3, pid=71) for path in (final, tmp_path / "scans" / "g0001.json")]
    others = [unfinished_path(final, epoch=epoch, pid=pid) for epoch, pid in ((3, 7), (3, 710), (2, 71))]
    write(final, *mine, *others)
    remove_unfinished(tmp_path, writers={(3, 71)})
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted([final, *others])


def test_everybodys_go_when_nobody_writes_any_more(tmp_path: Path) -> None:
    final = tmp_path / "accepted" / "train-g0000.parquet"
    write(final, unfinished_path(final, epoch=0, pid=1), unfinished_path(tmp_path / "manifest.json", epoch=1, pid=2))
    names = ("000001.json", "exit.json", "e000003.json", "e000000-r0000-000001.jsonl", "e000000-n0001.json", "e000000-r000001.txt")
    being_created = [tmp_path / "attempts" / f".tmp-{name}-9-abcdef12" for name in names]  # by `create_exclusive`, of whoever works just now
    write(*being_created)
    remove_unfinished(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted([final, *being_created])
    remove_unfinished(tmp_path / "not there")


def test_a_storage_does_not_list_what_is_unfinished(tmp_path: Path) -> None:
    write(unfinished_path(tmp_path / "items" / "group-000000.json", epoch=0, pid=1))
    assert FileStorage(tmp_path).names("items") == ()


def test_one_that_cannot_be_removed_is_told_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a sticky folder, say, and another user's."""
    write(unfinished_path(tmp_path / "g0000.parquet", epoch=0, pid=1))

    def refuse(path: Path, *, missing_ok: bool) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    remove_unfinished(tmp_path)
    assert "unfinished files stay: [Errno 1] Operation not permitted" in caplog.text
