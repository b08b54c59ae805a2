"""The build of the control plane's programs, with tools that only pretend: killed, repeated, twice at once, and where something is missing."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import binaries
from lab.errors import ClusterError

_FOLDER = Path(binaries.__file__).parents[1]
_PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
_TOOLS = {
    "apt-get": 'case "$*" in *download-only*) touch kubernetes_1.20.2.dsc;; *\\ download\\ *) touch etcd.deb;; esac',
    "dpkg-deb": 'mkdir -p "$3/usr/bin"; echo etcd > "$3/usr/bin/etcd"',
    "dpkg-source": 'mkdir -p "$4"',
    "make": 'while [ -e "$STOP" ]; do sleep 0.02; done; mkdir -p _output/bin; for p in ${1#WHAT=}; do echo "$p" > "_output/bin/${p#cmd/}"; done',
    "patch": "true",
}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the tools, which note that they were called; and a cache of its own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in _TOOLS.items():
        (folder / name).write_text(f"#!/bin/bash\necho {name} >> {tmp_path}/calls\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STOP", str(tmp_path / "stop"))
    monkeypatch.setattr(binaries, "_KEYS", str(folder))
    return folder


def _calls(folder: Path) -> list[str]:
    return (folder.parent / "calls").read_text().split()


def test_programs_come_into_the_cache_and_nothing_else_stays(tools: Path) -> None:
    said: list[str] = []
    place = binaries.build(say=said.append)
    assert sorted(path.name for path in place.iterdir()) == sorted(_PROGRAMS)
    assert sorted(path.name for path in place.parent.iterdir()) == sorted([place.name, f"{place.name}.lock"])
    assert [line[:3] for line in said] == ["1/4", "2/4", "3/4", "4/4"]
    before = _calls(tools)
    assert binaries.build(say=said.append) == binaries.ready() == place
    assert _calls(tools) == before


def test_a_build_that_was_killed_leaves_no_half_cache_and_is_gone_on_with(tools: Path) -> None:
    stop = Path(os.environ["STOP"])
    stop.touch()
    script = f"import sys; sys.path.insert(0, {str(_FOLDER)!r}); from lab import binaries; binaries._KEYS = '/'; binaries.build(say=print)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL) as process:
        _until(lambda: "make" in _calls(tools) if (tools.parent / "calls").exists() else False)
        process.kill()
    with pytest.raises(ClusterError, match=r"test_cluster\.py build"):
        binaries.ready()
    stop.unlink()
    downloads = _calls(tools).count("apt-get")
    said: list[str] = []
    assert sorted(path.name for path in binaries.build(say=said.append).iterdir()) == sorted(_PROGRAMS)
    assert said[0].startswith("3/4")
    assert _calls(tools).count("apt-get") == downloads


def test_of_two_builds_at_once_one_waits(tools: Path) -> None:
    stop = Path(os.environ["STOP"])
    stop.touch()
    said: list[str] = []
    first = threading.Thread(target=lambda: binaries.build(say=lambda line: None))
    first.start()
    _until(lambda: (tools.parent / "calls").exists() and "make" in _calls(tools))
    second = threading.Thread(target=lambda: binaries.build(say=said.append))
    second.start()
    _until(lambda: bool(said))
    assert said == ["another build is under way; waiting for it"]
    stop.unlink()
    for thread in (first, second):
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert _calls(tools).count("make") == 1


def test_what_is_missing_is_said_at_once(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binaries, "_KEYS", str(tmp_path / "no"))
    monkeypatch.setattr(binaries, "_NEEDED_BYTES", shutil.disk_usage(tmp_path).total * 2)
    with pytest.raises(ClusterError) as refused:
        binaries.build(say=lambda line: None)
    for mend in ("apt-get install -y --no-install-recommends", "debian-archive-keyring", "HEADRACE_CACHE"):
        assert mend in str(refused.value)


def test_a_step_that_fails_shows_the_end_of_its_log(tools: Path) -> None:
    (tools / "make").write_text("#!/bin/bash\necho no room left; exit 2\n")
    with pytest.raises(ClusterError, match="no room left") as refused:
        binaries.build(say=lambda line: None)
    assert "goes on from here" in str(refused.value)


def _until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
