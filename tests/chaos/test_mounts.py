"""Rows 20 and 22 of the fault matrix on file systems of their own: one that is full, one that turns read-only; under agent and ranks alike."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from schemas.exit_code import ExitCode
from schemas.progress import NoticeKind
from tests.chaos.conftest import MakeTraining
from tests.chaos.injector import Faults
from tests.chaos.live_training import LiveTraining
from tests.chaos.test_storage_faults import KEEP_ALL, notices

pytestmark = [pytest.mark.slow, pytest.mark.mount]

_SIZE = 96 << 20
_PATIENCE_S = 30.0


@pytest.fixture
def small(make_training: MakeTraining, tmp_path: Path) -> Iterator[LiveTraining]:
    """A training whose storage is a file system of 96 MiB."""
    root = tmp_path / "training" / "data"
    root.mkdir(parents=True)
    subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "headrace-test", str(root)), check=True)
    try:
        training = make_training(**KEEP_ALL)
        yield training
        training.sweep()
    finally:
        subprocess.run(("umount", "--lazy", str(root)), check=True)


def _fill(root: Path) -> None:
    with (root / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return


def _remount(root: Path, how: str) -> None:
    """Mounts it anew; the kernel refuses to make read-only what somebody writes to at this moment, as agents do every second."""
    deadline = time.monotonic() + _PATIENCE_S
    while (done := subprocess.run(("mount", "-o", f"remount,{how}", str(root)), capture_output=True, text=True, check=False)).returncode != 0:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("spoil", "mend", "says"),
    [
        (_fill, lambda root: (root / "filler").unlink(), r" bytes are needed and [\d,]+ are free"),
        (lambda root: _remount(root, "ro"), lambda root: _remount(root, "rw"), "Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_a_file_system_that_takes_nothing_for_a_while(
    small: LiveTraining, calm_hash: str, spoil: Callable[[Path], None], mend: Callable[[Path], None], says: str
) -> None:
    with small.meanwhile({0: lambda: spoil(small.root), 1: lambda: mend(small.root)}):
        draft = small.run(Faults().hold(rank=0, at_step=9).hold(rank=0, at_step=24))
    assert draft.content_hash == calm_hash
    assert small.exit_record().exit_code is ExitCode.DONE
    assert (small.attempts, small.incidents()) == ((0,), [])
    assert small.commits() == [5, 25, 30, 35, 40]
    assert notices(small, NoticeKind.CHECKPOINT_FAILED) == [10, 15, 20]
    assert re.search(says, small.log())
    assert [point.step for point in small.points()] == list(range(1, 41)), "what could not be published meanwhile came later"
    assert sorted(path.name for path in (small.artifact_dir / "checkpoints").iterdir())[:2] == ["step-00000005.e000000", "step-00000025.e000000"]
