"""The keeper of spare processes where the order of what it hears matters, which nobody can bring about from outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.environment import checkout

pytestmark = pytest.mark.slow

_SETTING = """
import os, signal, socket, sys
from cluster.agent.standby import Keeper
from cluster.agent.wire import Fork, Wire

def wait_for_end():
    (spare,) = keeper._asked.values()
    os.waitid(os.P_PID, spare.pid, os.WEXITED | os.WNOWAIT)
    return spare

ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
keeper, agent = Keeper(Wire(theirs), preload=()), Wire(ours)
request = Fork(token=7, name="rank 0", module="playground", argv=(), env={}, log=sys.argv[1], cwd=os.getcwd())
"""

_ENDS_AT_ONCE = """
keeper._start(request)
spare = wait_for_end()
keeper._report_ends()  # one look of the selector: another's end comes first, and this one is heard of with it
keeper._hear(spare)  # then what was ready in the same look
print(agent.receive(), agent.receive())
"""

_IS_ENDING = """
dying = keeper._waiting[0] = keeper._spawn(0)
os.kill(dying.pid, signal.SIGSTOP)  # as one whose socket is not torn down yet: it can be sent to, and hears nothing
keeper._start(request)
os.kill(dying.pid, signal.SIGKILL)
wait_for_end()
if sys.argv[2] == "end":
    keeper._report_ends()
keeper._hear(dying)
while keeper._asked:
    wait_for_end()
    keeper._report_ends()
forked, exited = agent.receive(), agent.receive()
assert forked.pid == exited.pid != dying.pid
print(forked, exited)
"""

_CANNOT_BEGIN = """
keeper._start(request)
while keeper._asked:
    wait_for_end()
    keeper._report_ends()
print(agent.receive(), agent.receive())
"""


def told(tmp_path: Path, script: str, *argv: str, log: str = "log") -> str:
    """Returns the end that the agent hears of, after the word that a program runs which ends with 3."""
    (tmp_path / "playground.py").write_text("raise SystemExit(3)")
    path = os.pathsep.join((str(checkout()), str(tmp_path)))
    command = (sys.executable, "-c", _SETTING + script, str(tmp_path / log), *argv)
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    forked, exited = done.stdout.split(") ")
    assert forked.startswith("Forked(token=7")
    return exited


def test_an_end_that_is_heard_of_before_the_word_that_it_runs_is_told_after_it(tmp_path: Path) -> None:
    assert "status=3" in told(tmp_path, _ENDS_AT_ONCE)


@pytest.mark.parametrize("first", ["word", "end"])
def test_what_was_asked_of_a_spare_that_was_ending_another_does(tmp_path: Path, first: str) -> None:
    assert "status=3" in told(tmp_path, _IS_ENDING, first)


def test_what_nobody_can_begin_is_tried_twice_and_told(tmp_path: Path) -> None:
    assert "status=1" in told(tmp_path, _CANNOT_BEGIN, log="no folder/log")
