"""Use of the node by child processes."""

import subprocess
import sys

import pytest

from cluster.agent.usage import UsageMeter
from tests.fakes.child_process import running
from tests.fakes.live_job import wait_until

BUSY = "import os, sys; b = b'x' * (160 << 20); print('ready', flush=True)\nwhile True: pass"
"""Takes much more than servers of other tests, which are children of this process, too, may give back meanwhile."""


def test_children_are_measured_and_what_they_wrote_is_not_forgotten() -> None:
    meter = UsageMeter()
    idle = meter.measure()
    with running(sys.executable, "-c", BUSY, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        busy = meter.measure()
        assert busy.memory_used_bytes - idle.memory_used_bytes > 64 << 20
        wait_until(lambda: meter.measure().cpu_percent > 0)
    after = meter.measure()
    assert after.memory_used_bytes < busy.memory_used_bytes
    assert after.written_bytes >= busy.written_bytes
    assert after.read_bytes >= busy.read_bytes


@pytest.mark.parametrize(("call", "error"), [("io_counters", RuntimeError("file was empty")), ("memory_info", ValueError("not enough values"))])
def test_a_process_whose_files_are_empty_as_it_ends_is_left_out(monkeypatch: pytest.MonkeyPatch, call: str, error: Exception) -> None:
    def fail(_: object) -> None:
        raise error

    with running(sys.executable, "-c", "input()", stdin=subprocess.PIPE):
        monkeypatch.setattr(f"psutil._pslinux.Process.{call}", fail)
        assert UsageMeter().measure().written_bytes == 0
