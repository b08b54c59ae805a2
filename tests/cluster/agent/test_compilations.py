"""Locks of compilations: a dead process's goes, a live one's and a stranger's stay. The lock is torch's own."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.agent import compilations
from cluster.agent.compilations import remove_dead_locks

_COMPILER = """
import sys
from torch.utils.file_baton import FileBaton
print(FileBaton(sys.argv[1]).try_acquire(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def compiler(lock: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that compiles, as far as others can tell."""
    with subprocess.Popen((sys.executable, "-c", _COMPILER, str(lock)), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_only_a_dead_process_loses_its_lock(lock: Path, compiler: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    assert remove_dead_locks(environment) == ()
    assert lock.exists()
    compiler.kill()
    compiler.wait()
    assert remove_dead_locks(environment) == (lock,)
    assert not lock.exists()
    assert remove_dead_locks(environment) == ()


@pytest.mark.parametrize("variables", [{"TORCH_EXTENSIONS_DIR": "{}"}, {"XDG_CACHE_HOME": "{}/.cache", "HOME": "/nowhere"}, {"HOME": "{}"}])
def test_where_torch_compiles(tmp_path: Path, variables: dict[str, str]) -> None:
    folder = tmp_path if "TORCH_EXTENSIONS_DIR" in variables else tmp_path / ".cache" / "torch_extensions"
    lock = folder / "py311_cpu" / "utils" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert remove_dead_locks({name: value.format(tmp_path) for name, value in variables.items()}) == (lock,)


@pytest.mark.parametrize("stranger", ["another machine", "another user"])
def test_what_a_stranger_may_hold_stays_and_is_told(
    lock: Path, stranger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lock.touch()
    if stranger == "another machine":
        monkeypatch.setattr(compilations, "mounts_here", lambda: f"server:/x {tmp_path} nfs4 rw 0 0\n")
    else:
        monkeypatch.setattr(compilations.os, "getuid", lambda: lock.stat().st_uid + 1)
    with caplog.at_level(logging.WARNING):
        assert remove_dead_locks({"TORCH_EXTENSIONS_DIR": str(tmp_path)}) == ()
    assert lock.exists()
    assert str(lock) in caplog.text
