"""Identities of processes."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.process import ProcessId, is_dead, is_own, owner_here, process_table, started_at, this_process, user_name, wait_dead
from tests.fakes.child_process import running
from tests.fakes.other_user import OtherUser, environment_for_others, other_user


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


def test_the_system_says_who_the_user_is_not_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    assert user_name() == pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(os, "geteuid", lambda: 61_999)
    assert user_name() == "61999"


def test_a_user_is_the_same_on_every_host() -> None:
    assert is_own(owner_here())
    assert is_own(f"{user_name()}@another-host")
    assert not is_own("somebody-else@here")
    assert not is_own("")


@pytest.fixture
def stranger() -> Iterator[OtherUser]:
    """A user who may read our packages."""
    place = Path(tempfile.mkdtemp(prefix="headrace-users-"))
    place.chmod(0o755)
    yield other_user(61_003, umask=0o022, home=place / "home", python=environment_for_others(place / "python"))
    shutil.rmtree(place)


@pytest.mark.users
@pytest.mark.mount
@pytest.mark.slow
def test_a_process_that_is_hidden_from_this_user_is_not_dead(stranger: OtherUser) -> None:
    """With `hidepid`, as on many login nodes, `/proc` shows everybody their own processes only."""
    program = """
import sys
from cluster.process import ProcessId, is_dead, process_table, started_at
pid = int(sys.argv[1])
process = ProcessId(host="here", table=process_table(), pid=pid, started=1.0)
print(started_at(pid), is_dead(process), is_dead(ProcessId(host="here", table=process_table(), pid=2**22 - 1, started=1.0)))
"""
    with running(sys.executable, "-c", "input()", stdin=subprocess.PIPE) as child:
        for hidepid in (1, 2):
            mount = f'mount -t proc -o hidepid={hidepid} proc /proc && exec "$@"'
            argv = ["unshare", "--mount", "sh", "-c", mount, "sh", *stranger.argv(("-c", program, str(child.pid)))]
            done = subprocess.run(argv, env=stranger.environment(), capture_output=True, text=True, timeout=60)
            assert done.stdout.split() == ["None", "False", "True"], f"hidepid={hidepid}: {done.stdout}{done.stderr}"
