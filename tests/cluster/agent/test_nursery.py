"""The agent's side of a zygote that forks, and of a keeper of spare processes: processes start, end, and leave nothing behind."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.agent import nursery as nursery_module
from cluster.agent.nursery import Nursery, Program
from cluster.agent.preload import recorded_modules
from cluster.environment import MODULES_FILE, compute_environment
from cluster.process import started_at
from tests.fakes.live_job import wait_until

pytestmark = pytest.mark.slow

PROGRAM = """
import os, signal, subprocess, sys, threading, time
what = sys.argv[1]
print("hello from", what, os.environ["GREETING"], os.getcwd(), flush=True)
if what == "raise":
    raise ValueError("no luck")
if what == "threads":
    sys.exit(threading.active_count() - 1)
if what == "child":
    print("child", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
    time.sleep(600)
if what == "sleep":
    time.sleep(600)
if what == "modules":
    from cluster.agent.preload import record_modules
    import wave, colorsys
    record_modules()
if what == "loaded":
    sys.exit(0 if "colorsys" in sys.modules else 1)
if what == "found":
    import larder
    print("larder holds", larder.HELD, flush=True)
if what == "signals":
    sys.exit(0 if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL else 1)
if what == "exit":
    sys.exit(int(sys.argv[2]))
"""


@pytest.fixture(params=[False, True], ids=["zygote", "standby"])
def nursery(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Nursery]:
    (tmp_path / "playground.py").write_text(PROGRAM)
    inherited = {**os.environ, "PYTHONPATH": str(tmp_path)}  # where the playground lies
    env = compute_environment(inherited, extra={}, project_dir=str(tmp_path), threads=1, python=sys.executable)
    nursery = Nursery(preload=("decimal",), env=env, cwd=str(tmp_path), log=tmp_path / "zygote.log", standby=request.param)
    yield nursery
    nursery.close()


def program(tmp_path: Path, *argv: str, name: str = "item 1", **env: str) -> Program:
    return Program(name=name, module="playground", argv=argv, env={"GREETING": "hi", **env}, log=tmp_path / f"{argv[0]}.log")


def status_of(nursery: Nursery, tmp_path: Path, *argv: str, **env: str) -> int:
    pid = nursery.start(program(tmp_path, *argv, **env))
    [end] = nursery.wait(30.0)
    assert end.pid == pid
    return end.status


def until_loaded(nursery: Nursery, tmp_path: Path, file: Path) -> None:
    """Runs programs until one finds imported what `file` names."""
    deadline, pause_s = time.monotonic() + 90.0, 0.5
    while status_of(nursery, tmp_path, "loaded") != 0:
        assert time.monotonic() < deadline
        nursery.warm_up(file)
        nursery.wait(pause_s)  # for a spare process that has just been started: one that is asked to run before it has imported is used up
        pause_s *= 2


def test_processes_run_with_their_environment_log_and_folder(nursery: Nursery, tmp_path: Path) -> None:
    assert status_of(nursery, tmp_path, "plain") == 0
    assert (tmp_path / "plain.log").read_text() == f"hello from plain hi {tmp_path}\n"


def test_a_program_that_was_imported_ahead_runs_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "rehearsed.py").write_text("import colorsys, sys\nif __name__ == '__main__':\n    print('rehearsed' in sys.modules)\n")
    env = compute_environment({**os.environ, "PYTHONPATH": str(tmp_path)}, extra={}, project_dir=str(tmp_path), threads=1, python=sys.executable)
    nursery = Nursery(preload=("rehearsed",), env=env, cwd=str(tmp_path), log=tmp_path / "zygote.log")
    try:
        nursery.start(Program(name="item 1", module="rehearsed", argv=(), env={}, log=tmp_path / "item.log"))
        [end] = nursery.wait(30.0)
    finally:
        nursery.close()
    assert (end.status, (tmp_path / "item.log").read_text()) == (0, "False\n")


def test_signals_that_a_scheduler_sends_to_every_process_do_not_end_the_zygote(nursery: Nursery, tmp_path: Path) -> None:
    """With it would end all ranks, in the middle of their last checkpoint."""
    pid = nursery.start(program(tmp_path, "sleep"))
    zygote = psutil.Process(pid).parent()
    assert zygote is not None
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        zygote.send_signal(number)
    assert status_of(nursery, tmp_path, "plain") == 0
    assert psutil.Process(pid).parent() == zygote
    nursery.kill_all()


def test_exit_codes_and_signals_come_back(nursery: Nursery, tmp_path: Path) -> None:
    assert status_of(nursery, tmp_path, "exit", "75") == 75
    pid = nursery.start(program(tmp_path, "sleep"))
    nursery.signal(signal.SIGTERM)
    [end] = nursery.wait(30.0)
    assert (end.pid, end.status) == (pid, -signal.SIGTERM)
    assert nursery.running == {}


def test_an_exception_leaves_its_stack_without_our_frames(nursery: Nursery, tmp_path: Path) -> None:
    assert status_of(nursery, tmp_path, "raise") == 1
    log = (tmp_path / "raise.log").read_text()
    assert log.endswith("ValueError: no luck\n")
    assert "/cluster/agent/" not in log
    assert "runpy" not in log


def test_children_begin_with_one_thread_and_default_signals(nursery: Nursery, tmp_path: Path) -> None:
    assert status_of(nursery, tmp_path, "threads") == 0
    assert status_of(nursery, tmp_path, "signals") == 0


def test_killing_reaches_what_a_process_has_started(nursery: Nursery, tmp_path: Path) -> None:
    nursery.start(program(tmp_path, "child"))
    log = tmp_path / "child.log"
    wait_until(lambda: log.exists() and "\nchild " in log.read_text())  # a line comes whole
    grandchild = int(log.read_text().split()[-1])
    nursery.kill_all()
    wait_until(lambda: started_at(grandchild) is None)


def outlive(nursery: Nursery) -> None:
    """Lets the processes that run outlive `kill_all`, as what hangs in the kernel does."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nursery_module, "_VANISH_S", 0.0)
        patched.setattr(nursery, "signal", lambda *_: None)
        nursery.kill_all()


def test_what_outlives_its_kill_is_not_heard_of_again(nursery: Nursery, tmp_path: Path) -> None:
    """Else the next epoch would meet a process that is none of its ranks."""
    old = nursery.start(program(tmp_path, "child"))
    log = tmp_path / "child.log"
    wait_until(lambda: log.exists() and "\nchild " in log.read_text())
    grandchild = int(log.read_text().split()[-1])
    outlive(nursery)
    assert nursery.running == {}
    new = nursery.start(program(tmp_path, "sleep"))
    os.kill(old, signal.SIGTERM)
    wait_until(lambda: not psutil.pid_exists(old))  # its end is told before the other's
    os.kill(new, signal.SIGTERM)
    assert [end.pid for end in nursery.wait(30.0)] == [new]
    wait_until(lambda: started_at(grandchild) is None)


def test_what_outlives_its_kill_is_not_heard_of_when_its_zygote_dies(nursery: Nursery, tmp_path: Path) -> None:
    old = nursery.start(program(tmp_path, "sleep"))
    outlive(nursery)
    new = nursery.start(program(tmp_path, "sleep"))
    zygote = psutil.Process(new).parent()
    assert zygote is not None
    zygote.kill()
    assert [(end.pid, end.zygote_died) for end in nursery.wait(30.0)] == [(new, True)]
    wait_until(lambda: started_at(old) is None)
    assert status_of(nursery, tmp_path, "exit", "3") == 3


def test_waiting_returns_without_an_end(nursery: Nursery, tmp_path: Path) -> None:
    nursery.start(program(tmp_path, "sleep"))
    assert nursery.wait(0.01) == ()


def test_a_killed_zygote_takes_its_processes_along_and_is_replaced(nursery: Nursery, tmp_path: Path) -> None:
    pid = nursery.start(program(tmp_path, "sleep"))
    zygote = psutil.Process(pid).parent()
    assert zygote is not None
    zygote.kill()
    [end] = nursery.wait(30.0)
    assert (end.pid, end.zygote_died) == (pid, True)
    assert started_at(pid) is None
    assert status_of(nursery, tmp_path, "exit", "3") == 3


def test_a_zygote_that_dies_unnoticed_is_replaced_at_the_next_start(nursery: Nursery, tmp_path: Path) -> None:
    pid = nursery.start(program(tmp_path, "sleep"))  # one that ended by itself might be gone before it is asked for its parent
    zygote = psutil.Process(pid).parent()
    assert zygote is not None
    nursery.signal(signal.SIGTERM)
    [end] = nursery.wait(30.0)
    assert (end.pid, end.zygote_died) == (pid, False)
    zygote.kill()
    wait_until(lambda: started_at(zygote.pid) is None)
    assert status_of(nursery, tmp_path, "exit", "4") == 4


def test_what_a_first_rank_imported_is_there_for_the_next(nursery: Nursery, tmp_path: Path) -> None:
    file = tmp_path / "modules.json"
    assert status_of(nursery, tmp_path, "loaded") == 1
    assert status_of(nursery, tmp_path, "modules", **{MODULES_FILE: str(file)}) == 0
    assert {"wave", "colorsys"} <= set(recorded_modules(file))
    assert "__main__" not in recorded_modules(file)
    nursery.warm_up(file)
    until_loaded(nursery, tmp_path, file)


def test_other_ranks_write_nothing_down(nursery: Nursery, tmp_path: Path) -> None:
    file = tmp_path / "modules.json"
    assert status_of(nursery, tmp_path, "modules", **{MODULES_FILE: str(file), "LOCAL_RANK": "1"}) == 0
    assert not file.exists()


def test_a_module_that_cannot_be_imported_ahead_does_not_end_the_zygote(nursery: Nursery, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('only inside a rank')")
    file = tmp_path / "modules.json"
    file.write_text('["broken", "no.such.module", "colorsys"]')
    nursery.warm_up(file)
    until_loaded(nursery, tmp_path, file)


def test_closing_leaves_no_process(nursery: Nursery, tmp_path: Path) -> None:
    pid = nursery.start(program(tmp_path, "sleep"))
    zygote = psutil.Process(pid).ppid()
    nursery.close()
    assert started_at(pid) is None
    assert started_at(zygote) is None


@pytest.mark.parametrize("nursery", [True], indirect=True, ids=["standby"])
def test_a_spare_takes_the_next_place_and_a_dead_one_is_made_up_for(nursery: Nursery, tmp_path: Path) -> None:
    """One for each local rank. It has the pid already that the rank will have."""
    pids = [nursery.start(program(tmp_path, "sleep", LOCAL_RANK=str(slot))) for slot in (0, 1)]
    keeper = psutil.Process(pids[0]).parent()
    assert keeper is not None
    (tmp_path / "modules.json").write_text("[]")
    nursery.warm_up(tmp_path / "modules.json")
    wait_until(lambda: len(keeper.children()) == 4)
    spares = {child.pid for child in keeper.children()} - set(pids)
    nursery.kill_all()
    assert {nursery.start(program(tmp_path, "sleep", LOCAL_RANK=str(slot))) for slot in (1, 0)} == spares
    nursery.warm_up(tmp_path / "modules.json")
    wait_until(lambda: len(keeper.children()) == 4)
    (dead, *_) = [child for child in keeper.children() if child.pid not in spares]
    dead.kill()  # the keeper may ask it before it hears of that
    nursery.kill_all()
    running = [nursery.start(program(tmp_path, "sleep", LOCAL_RANK=str(slot))) for slot in (0, 1)]
    assert dead.pid not in running
    assert sorted(nursery.running) == sorted(running)
    nursery.signal(signal.SIGTERM)
    assert {end.status for end in (*nursery.wait(10.0), *nursery.wait(10.0))} == {-signal.SIGTERM}


LARDER = """
import os
HELD = []
def stock(spec):
    HELD.append((spec.read_text(), os.getpid()))
def drop(spec):
    raise ValueError("a broken jar")
def collapse(spec):
    os._exit(3)
"""


@pytest.fixture
def forking(tmp_path: Path, nursery: Nursery, request: pytest.FixtureRequest) -> Nursery:
    """A nursery that forks: spare processes load by themselves."""
    (tmp_path / "larder.py").write_text(LARDER)
    (tmp_path / "spec.json").write_text("the spec")
    return nursery


@pytest.mark.parametrize("nursery", [False], indirect=True, ids=["zygote"])
def test_what_is_loaded_ahead_is_found_by_every_program(forking: Nursery, tmp_path: Path) -> None:
    for _ in range(2):  # the second time does nothing
        forking.load("larder:stock", tmp_path / "spec.json")
        assert status_of(forking, tmp_path, "found") == 0
    first, second = (line for line in (tmp_path / "found.log").read_text().splitlines() if line.startswith("larder"))
    assert first == second
    assert first.startswith("larder holds [('the spec', ")


@pytest.mark.parametrize("nursery", [False], indirect=True, ids=["zygote"])
@pytest.mark.parametrize("loader", ["larder:drop", "larder:collapse", "larder:nothing", "nowhere:nothing"])
def test_programs_run_though_nothing_could_be_loaded(forking: Nursery, tmp_path: Path, loader: str) -> None:
    forking.load(loader, tmp_path / "spec.json")
    assert status_of(forking, tmp_path, "found") == 0
    assert (tmp_path / "found.log").read_text().endswith("larder holds []\n")
    forking.load(loader, tmp_path / "spec.json")  # not again: it might kill the next zygote too
    assert status_of(forking, tmp_path, "plain") == 0
