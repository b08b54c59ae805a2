"""How much a folder still takes: by its file system, and by the quotas that `quota` and `lfs` tell of, in their own text."""

import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cluster.process import user_name
from cluster.quota import Room, rooms_of

MOUNTS = "{kind} {place} {kind} rw 0 0\n"

# As quota 4.06 prints it with -w -p: a long device is not wrapped, a star marks what has passed a limit, then a grace period is told.
QUOTA = """Disk quotas for {kind} somebody ({letter}id {other}):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
/dev/mapper/very-long-name-of-a-volume       4      1       1       0       1       1       1       0
Disk quotas for {kind} somebody ({letter}id {number}):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
/dev/mapper/very-long-name-of-a-volume   {numbers}
"""
NONE = "Disk quotas for user somebody (uid {number}): none\n"
# As Lustre 2.15 prints it with -q: a long name has a line of its own, limits of which there are none are 0.
LFS = """/lustre/a-long-name-of-a-file-system
                  {numbers}
"""


def rooms(folder: Path, answer: str, *, kind: str = "ext4") -> list[Room]:
    """The quotas' rooms, when every program answers the same."""
    found = rooms_of(folder, ask=lambda _: answer, mounts=MOUNTS.format(kind=kind, place="/"))
    assert found[0].source == f"the file system of {folder}"
    return list(found[1:])


@pytest.mark.parametrize(
    ("numbers", "left"),
    [
        ("2000  5000 9000 0 10 50 90 0", (7000 * 1024, 80)),
        ("2000  5000 0 0 10 50 0 0", (3000 * 1024, 40)),  # soft limits alone
        ("2000  0 0 0 10 0 90 0", (None, 80)),
        ("9500* 5000 9000 1795353175 91* 50 90 0", (0, 0)),
    ],
)
def test_what_quotas_leave(tmp_path: Path, numbers: str, left: tuple[int | None, int | None]) -> None:
    answer = QUOTA.format(kind="user", letter="u", number=os.geteuid(), other=os.geteuid() + 1, numbers=numbers)
    assert rooms(tmp_path, answer) == [Room(f"the quota of user {user_name()}", *left)]


def test_the_group_that_counts_is_that_of_the_folder(tmp_path: Path) -> None:
    answer = QUOTA.format(kind="group", letter="g", number=tmp_path.stat().st_gid, other=7, numbers="1 0 5 0 1 0 3 0")
    assert rooms(tmp_path, answer) == [Room(f"the quota of group {tmp_path.stat().st_gid}", 4 * 1024, 2)]


@pytest.mark.parametrize("answer", ["", NONE.format(number=0), "quota: no quota enabled\n", "Disk quotas for user x (uid 0):\n 1 2 3\n"])
def test_no_answer_is_no_limit(tmp_path: Path, answer: str) -> None:
    assert rooms(tmp_path, answer) == []
    assert rooms(tmp_path, answer, kind="lustre") == []


@pytest.mark.parametrize(
    ("numbers", "left"),
    [("2000 5000 9000 - 10 50 90 -", (7000 * 1024, 80)), ("9500* 0 9000 - 10 0 0 -", (0, None)), ("[2000] 0 9000 - [10] 0 90 -", (7000 * 1024, 80))],
)
def test_what_lustre_leaves(tmp_path: Path, numbers: str, left: tuple[int | None, int | None]) -> None:
    sources = [room.source for room in rooms(tmp_path, LFS.format(numbers=numbers), kind="lustre")]
    assert sources == [f"the quota of user {user_name()}", f"the quota of group {tmp_path.stat().st_gid}"]
    assert [(room.free_bytes, room.free_inodes) for room in rooms(tmp_path, LFS.format(numbers=numbers), kind="lustre")] == [left, left]


def test_the_programs_are_asked_for_the_mount_point(tmp_path: Path) -> None:
    asked: list[Sequence[str]] = []
    for kind in ("ext4", "lustre"):
        rooms_of(tmp_path, ask=lambda argv: asked.append(argv) or "", mounts=MOUNTS.format(kind=kind, place="/"))  # type: ignore[func-returns-value]
    assert [argv[0] for argv in asked] == ["quota", "quota", "lfs", "lfs"]
    assert all(os.path.ismount(argv[-1]) for argv in asked)


def test_an_installed_program_is_run_and_may_end_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = QUOTA.format(kind="user", letter="u", number=os.geteuid(), other=9, numbers="9500* 5000 9000 7 1 0 0 0")
    program = tmp_path / "bin" / "quota"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}END\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert rooms_of(tmp_path, mounts=MOUNTS.format(kind="ext4", place="/"))[1:] == (Room(f"the quota of user {user_name()}", 0, None),)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte and forty inodes."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=40", "tmpfs", str(folder)), check=True)
    yield folder
    subprocess.run(("umount", str(folder)), check=True)


@pytest.mark.mount
def test_inodes_run_out_before_bytes(small: Path) -> None:
    before = rooms_of(small)[0]
    for number in range(10):
        (small / f"{number}").touch()
    after = rooms_of(small)[0]
    assert before.free_inodes is not None
    assert after.free_inodes == before.free_inodes - 10
    assert (before.free_inodes <= 40, after.free_bytes == before.free_bytes) == (True, True)
