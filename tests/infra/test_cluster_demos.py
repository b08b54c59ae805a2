"""`make slurm-demo`, `make k8s-demo`: the whole pipeline with a node that is powered off, and an interrupted one; neither leaves anything."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.kubernetes_cluster import CACHE

ROOT = Path(__file__).resolve().parents[2]
NOTHING_LEFT = "the cluster is down; no job, no process and no shared memory is left"

SLURM = pytest.param("slurm", marks=pytest.mark.slurm)
KUBERNETES = pytest.param("kubernetes", marks=pytest.mark.kubernetes)
NAMES = {"slurm": "slurm-demo", "kubernetes": "k8s-demo"}

pytestmark = pytest.mark.slow

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a demo; one that a failed test leaves is asked to end, and takes its cluster down."""
    started: list[subprocess.Popen[str]] = []

    def begin(kind: str, *, path: str | None = None) -> "subprocess.Popen[str]":
        argv = (sys.executable, str(ROOT / f"infra/{kind}/demo.py"), "--steps", "150", "--folder", str(tmp_path / "demo"))
        env = {**os.environ, "PATH": path or os.environ["PATH"], "HEADRACE_CACHE": str(CACHE)}
        started.append(subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.terminate()
        process.communicate(timeout=180)


@pytest.mark.slurm
def test_without_slurm_it_says_what_to_install(start: Start, tmp_path: Path) -> None:
    said, _ = (process := start("slurm", path=str(tmp_path))).communicate(timeout=60)
    assert process.returncode == 2, said
    assert "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge" in said
    assert "Traceback" not in said


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [SLURM, KUBERNETES])
def test_a_node_that_is_powered_off_costs_time_and_nothing_is_left(start: Start, kind: str) -> None:
    said, _ = (process := start(kind)).communicate(timeout=1200)
    assert process.returncode == 0, said
    assert "is powered off at step" in said
    screen = said.partition(f"\n{NAMES[kind]}-")[2]
    assert "  the job failed (node) at step" in screen, said
    assert f"models:/{NAMES[kind]}@champion, version 1" in screen
    assert "nothing of it is left on the cluster" in said
    assert NOTHING_LEFT in said


@pytest.mark.exhaustive
@pytest.mark.slurm
def test_ctrl_c_takes_everything_down(start: Start, tmp_path: Path) -> None:
    process = start("slurm")
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("demo/data/train/*/commits/step-*.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the training does not begin"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 130, said
    assert NOTHING_LEFT in said
    assert "Traceback" not in said
