"""The keeper of spare processes where the order of what it hears matters, which nobody can bring about from outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.environment import checkout

pytestmark = pytest.mark.slow

_KEEPER = """
import os, socket, sys, time
from cluster.agent.standby import Keeper
from cluster.agent.wire import Fork, Wire

ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
keeper, agent = Keeper(Wire(theirs), preload=()), Wire(ours)
keeper._start(Fork(token=7, name="rank 0", module="playground", argv=(), env={}, log=sys.argv[1], cwd=os.getcwd()))
(spare,) = keeper._asked.values()
os.waitid(os.P_PID, spare.pid, os.WEXITED | os.WNOWAIT)
keeper._report_ends()  # one look of the selector: another's end comes first, and this one is heard of with it
keeper._hear(spare)  # then what was ready in the same look
print(agent.receive(), agent.receive())
"""


def test_an_end_that_is_heard_of_before_the_word_that_it_runs_is_told_after_it(tmp_path: Path) -> None:
    (tmp_path / "playground.py").write_text("raise SystemExit(3)")
    path = os.pathsep.join((str(checkout()), str(tmp_path)))
    argv = (sys.executable, "-c", _KEEPER, str(tmp_path / "log"))
    done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    forked, exited = done.stdout.split(") ")
    assert forked.startswith("Forked(token=7")
    assert "status=3" in exited
