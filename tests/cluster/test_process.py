"""Identities of processes."""

import subprocess
import sys
from dataclasses import replace

from cluster.process import ProcessId, is_dead, process_table, started_at, this_process, wait_dead
from tests.fakes.child_process import running


def test_this_process_lives() -> None:
    assert not is_dead(this_process())


def test_an_ended_process_is_dead_and_a_zombie_too() -> None:
    with running(sys.executable, "-c", "input()", stdin=subprocess.PIPE) as child:
        started = started_at(child.pid)
        assert started is not None
        identity = ProcessId(host="here", table=process_table(), pid=child.pid, started=started)
        assert not is_dead(identity)
        child.kill()
        assert wait_dead(identity, timeout_s=30.0)
        assert started_at(child.pid) is None
    assert is_dead(identity)


def test_a_recycled_pid_is_another_process() -> None:
    assert is_dead(replace(this_process(), started=0.5))


def test_nothing_is_known_about_another_machine() -> None:
    assert not is_dead(ProcessId(host="far", table="another boot/1", pid=2**22 + 1, started=1.0))
