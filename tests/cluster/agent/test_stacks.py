"""What hanging processes are doing: real ones, that hold the GIL, wait for themselves, or are stopped."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.agent import stacks
from cluster.agent.stacks import RankProcess, collect_stacks, in_collective, main_stack, process_facts
from cluster.environment import STACKS_FILE
from cluster.watchdog import ProcessState
from tests.fakes.live_job import wait_until

PROGRAM = """
import ctypes, os, sys, threading, time
from cluster.agent.stacks import answer_with_stacks

def hold_the_gil():
    sleep = ctypes.PyDLL(None).sleep
    os.write(1, READY)
    sleep(600)

def wait_for_oneself():
    lock = threading.Lock()
    lock.acquire()
    os.write(1, READY)
    lock.acquire()

def compute():
    os.write(1, READY)
    while True:
        pass

READY = b"ready\\n"  # said where the stack is what it will stay

answer_with_stacks()
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
globals()[sys.argv[1]]()
"""

FAULTHANDLER = """waits in the kernel at: futex

faulthandler:
Current thread 0x00007f3ba17fa6c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 982 in run

Thread 0x00007f3bd5625b80 (most recent call first):
  File "/site-packages/torch/distributed/distributed_c10d.py", line 3252 in all_reduce
  File "/site-packages/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "/checkout/tasks/train/gang.py", line 60 in sum
  File "/checkout/cluster/agent/zygote.py", line 142 in run_program
  File "<frozen runpy>", line 88 in _run_code
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], RankProcess]]:
    started: list[subprocess.Popen[str]] = []

    def start(function: str) -> RankProcess:
        answer = tmp_path / f"stacks-{len(started)}.txt"
        env = {**os.environ, STACKS_FILE: str(answer), "PYTHONPATH": str(Path.cwd())}
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, function], env=env, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return RankProcess(len(started) - 1, process.pid, answer)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def state_of(process: RankProcess) -> ProcessState | None:
    facts = process_facts(process.pid)
    return facts.state if facts is not None else None


@pytest.mark.slow
@pytest.mark.parametrize("has_spy", [True, False])
def test_stacks_of_processes_that_answer_to_nothing_else(start: Callable[[str], RankProcess], monkeypatch: pytest.MonkeyPatch, has_spy: bool) -> None:
    if not has_spy:
        monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(stacks, "ANSWER_S", 60.0)  # on a busy machine three py-spies take longer than an agent has for them
    names = ("hold_the_gil", "wait_for_oneself", "wait_for_oneself")
    processes = [start(name) for name in names]
    wait_until(lambda: [state_of(process) for process in processes] == [ProcessState.SLEEPING] * 3)
    os.kill(processes[2].pid, signal.SIGSTOP)
    wait_until(lambda: state_of(processes[2]) is ProcessState.STOPPED)
    found = collect_stacks(processes)
    assert ("py-spy:" in found[0]) == has_spy
    for rank, name in enumerate(names):
        assert ("faulthandler:" in found[rank]) == (rank < 2 or not has_spy)
        assert main_stack(found[rank])[0].startswith(f"{name} (")
    stopped = process_facts(processes[2].pid)
    assert stopped is not None
    assert stopped.state.frozen == has_spy, "who can be read while it is stopped is not woken"


@pytest.mark.slow
def test_those_that_wait_for_a_stopped_one_answer_before_that_goes_on(start: Callable[[str], RankProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    """Woken first, it would do its part, and the others would be found somewhere else."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    stopped, waiting = start("compute"), start("wait_for_oneself")
    os.kill(stopped.pid, signal.SIGSTOP)
    wait_until(lambda: state_of(stopped) is ProcessState.STOPPED)
    kill, woken = os.kill, list[tuple[int, bool]]()

    def send(pid: int, number: int) -> None:
        if number == signal.SIGCONT:
            woken.append((pid, waiting.answer.stat().st_size > 0))
        kill(pid, number)

    monkeypatch.setattr(os, "kill", send)
    found = collect_stacks([stopped, waiting])
    assert woken == [(stopped.pid, True)]
    assert all("faulthandler:" in text for text in found.values())


def test_a_process_that_has_ended_has_no_stack_and_no_facts(start: Callable[[str], RankProcess]) -> None:
    process = start("compute")
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: process_facts(process.pid) is None)
    assert main_stack(collect_stacks([process])[0]) == ()


MAIN = """
Thread 0x00007f3bd5625b80 (most recent call first):
  File "/checkout/job.py", line 3 in step
  File "<frozen runpy>", line 198 in _run_module_as_main
"""


class SlowWriter:
    """A clock, and a process on a busy machine that writes its main thread's stack only after a while."""

    def __init__(self, answer: Path, *, at_s: float) -> None:
        self._answer, self._at_s, self._now = answer, at_s, 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        if self._now < self._at_s <= self._now + seconds:
            self._answer.write_text(self._answer.read_text() + MAIN)
        self._now += seconds


@pytest.mark.parametrize(("at_s", "frames"), [(0.5, ("step (/checkout/job.py:3)",)), (5.0, ("run (/lib/threading.py:982)",))])
def test_an_answer_that_comes_in_parts_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_s: float, frames: tuple[str, ...]) -> None:
    answer = tmp_path / "stacks.txt"
    answer.write_text('Thread 0x00007f3ba17fa6c0 (most recent call first):\n  File "/lib/threading.py", line 982 in run\n')
    monkeypatch.setattr(stacks, "time", SlowWriter(answer, at_s=at_s))
    assert main_stack(stacks._answer(RankProcess(0, os.getpid(), answer), deadline=stacks.ANSWER_S)) == frames


def test_processor_time_includes_that_of_children(start: Callable[[str], RankProcess]) -> None:
    busy = start("compute")
    wait_until(lambda: (facts := process_facts(busy.pid)) is not None and facts.cpu_s > 0.3)
    own, family = process_facts(os.getpid()), process_facts(os.getpid(), with_children=True)
    assert own is not None
    assert family is not None
    assert family.cpu_s - own.cpu_s >= 0.3


def test_the_main_thread_is_the_oldest_and_what_all_ranks_share_is_left_out() -> None:
    frames = main_stack(FAULTHANDLER)
    assert [frame.partition(" ")[0] for frame in frames] == ["all_reduce", "wrapper", "sum"]
    assert in_collective(frames)


def test_py_spy_names_the_main_thread() -> None:
    text = 'Thread 2 (idle): "batches_0"\n    _worker (/lib/thread.py:81)\nThread 1 (active): "MainThread"\n    forward (/site-packages/model.py:7)\n'
    assert main_stack(text) == ("forward (/site-packages/model.py:7)",)
    assert not in_collective(main_stack(text))


def test_a_collective_far_up_the_stack_is_not_what_it_waits_in() -> None:
    frames = ["sleep (/x.py:1)"] * stacks._INNER_FRAMES + ["all_reduce (/site-packages/torch/distributed/distributed_c10d.py:9)"]
    assert not in_collective(frames)


def test_no_text_no_frames() -> None:
    assert main_stack("") == ()
    assert not in_collective(())
