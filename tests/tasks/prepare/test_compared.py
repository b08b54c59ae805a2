"""What identifies the files to compare with, and which files cannot be any."""

from pathlib import Path

import pytest

from cluster.storage import hash_file
from schemas.errors import InputError
from tasks.prepare.compared import FILES_KEY, files_hash


def test_content_and_order_count_and_not_where_files_lie(tmp_path: Path) -> None:
    names = ("a/x.txt", "a/y.txt", "b/z.txt")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one" if name != "a/y.txt" else "two")
    first, other, copy = (str(tmp_path / name) for name in names)
    assert files_hash([first, other], hash_file) == files_hash([copy, other], hash_file) != files_hash([other, first], hash_file)


def test_all_files_that_cannot_be_compared_with_are_named_with_the_key_and_the_mend(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "fine.txt").write_text("x")
    (tmp_path / "link.txt").symlink_to("fine.txt")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    names = ["folder", "fine.txt", "link.txt", "loop.txt", "gone.txt", "*.jsonl"]
    with pytest.raises(InputError) as caught:
        files_hash([str(tmp_path / name) for name in names], hash_file)
    assert caught.value.what.splitlines() == [
        f"{FILES_KEY}: 5 of 6 cannot be compared with",
        f"    {tmp_path}/folder: is a folder",
        f"    {tmp_path}/link.txt is a symbolic link",
        f"    {tmp_path}/loop.txt: cannot be read: Too many levels of symbolic links",
        f"    {tmp_path}/gone.txt: cannot be read: No such file or directory",
        f"    {tmp_path}/*.jsonl: cannot be read: No such file or directory; wildcards count in corpus.sources alone",
    ]
    assert FILES_KEY in caught.value.mend
