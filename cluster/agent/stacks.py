"""What ranks were doing when they were found hanging: their stacks, and what the kernel says of them.

Two ways, both used: a signal whose handler (faulthandler, in C) writes all threads' stacks without needing the GIL, and `py-spy`
where it is installed, which reads the memory of a process that answers to nothing any more.
"""

import contextlib
import faulthandler
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.environment import STACKS_FILE
from cluster.watchdog import ProcessFacts, ProcessState

ANSWER_S = 2.0
"""Longest wait for stacks, three times: for py-spy, for ranks that run, for stopped ones. Ranks are replaced afterwards, so every second is lost."""

_SIGNAL = signal.SIGRTMIN + 6 if sys.platform == "linux" else signal.SIGUSR2
"""A real-time signal: schedulers and libraries use SIGUSR1 and SIGUSR2 themselves."""
_QUIET_S = 0.05
_STATES: Mapping[str, ProcessState] = {
    "R": ProcessState.RUNNING,
    "S": ProcessState.SLEEPING,
    "I": ProcessState.SLEEPING,
    "D": ProcessState.DISK,
    "T": ProcessState.STOPPED,
    "t": ProcessState.TRACED,
}
_CPU_FIELDS = slice(11, 15)
"""utime, stime, cutime and cstime among the fields of `/proc/PID/stat` after the name (proc(5) calls them 14 to 17)."""
_FRAME = re.compile(r'^ +File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>.+)$|^ +(?P<spied>\S+) \((?P<spied_file>.+):(?P<spied_line>\d+)\)$')
_OUTERMOST = re.compile(r"^ +File .+ in (?:_run_module_as_main|<module>)$|^ *\.\.\.$")
"""How faulthandler ends: the main thread comes last, and its outermost frame with it. Or it leaves out: frames or threads above a hundred."""
_THREAD = re.compile(r"^(?:Current thread|Thread) ")
_COLLECTIVE = re.compile(r"/torch/distributed/|/deepspeed/comm/|^wait \(.*/(?:torch|deepspeed)/")
_OURS = re.compile(r"/cluster/agent/(?:zygote|standby|program)\.py|runpy")
"""Frames below a rank's program, the same for all."""
_INNER_FRAMES = 4
"""How far from the innermost frame a collective operation shows: wrappers of it lie above."""


@dataclass(frozen=True)
class RankProcess:
    """A rank to look at."""

    rank: int
    pid: int
    answer: Path
    """File that it writes its stacks to when asked."""


def answer_with_stacks() -> None:
    """Lets this process write its stacks when the agent asks for them. For a rank, before its program runs."""
    path = os.environ.get(STACKS_FILE)
    if path is not None:
        faulthandler.register(_SIGNAL, file=open(path, "ab", buffering=0), all_threads=True, chain=False)  # noqa: SIM115  # as long as the process


def process_facts(pid: int, *, with_children: bool = False) -> ProcessFacts | None:
    """Returns what the kernel says of a process, or None when it has ended. About 20 µs; with its children some hundred."""
    fields = _stat_fields(pid)
    if fields is None or fields[0] not in _STATES:
        return None
    family = [fields, *(_stat_fields(child) for child in _descendants(pid))] if with_children else [fields]
    ticks = sum(int(number) for member in family if member is not None for number in member[_CPU_FIELDS])
    return ProcessFacts(state=_STATES[fields[0]], cpu_s=ticks / os.sysconf("SC_CLK_TCK"))


def waits_for_disk(pid: int) -> bool:
    """Whether a thread of a process waits for a disk in the kernel. About 20 µs a thread."""
    try:
        threads = [Path(f"/proc/{pid}/task/{thread}/stat").read_text() for thread in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):  # it, or one of them, has just ended
        return False
    return any(_STATES.get(stat.rpartition(")")[2].split()[0]) is ProcessState.DISK for stat in threads)


def collect_stacks(processes: Iterable[RankProcess]) -> dict[int, str]:
    """Returns each rank's stacks as text, after at most three times `ANSWER_S`: of those that run before those that are stopped.

    Stopped processes of which py-spy tells nothing are woken to answer, and then go on: the caller ends them all afterwards.
    """
    asked = tuple(processes)
    deadline = time.monotonic() + ANSWER_S
    waits = {process.rank: _kernel_wait(process.pid) for process in asked}
    spies = {process.rank: spy for process in asked if (spy := _spy_on(process.pid)) is not None}
    spied = {rank: _finish(spy, deadline=deadline) for rank, spy in spies.items()}
    answers: dict[int, str] = {}
    waking = [process for process in asked if not (spied.get(process.rank) and _is_frozen(process.pid))]
    stopped = [process for process in waking if _is_frozen(process.pid)]
    for process in waking:
        _send(process.pid, _SIGNAL)
    deadline = time.monotonic() + ANSWER_S
    for process in waking:
        if process not in stopped:
            answers[process.rank] = _answer(process, deadline=deadline)
    for process in stopped:  # only now: it goes on with its work, and then those that wait for it do
        _send(process.pid, signal.SIGCONT)
    deadline = time.monotonic() + ANSWER_S
    for process in stopped:
        answers[process.rank] = _answer(process, deadline=deadline)
    return {
        process.rank: "\n".join(
            [
                f"waits in the kernel at: {waits[process.rank]}",
                *(["", "py-spy:", spied[process.rank]] if spied.get(process.rank) else []),
                *(["", "faulthandler:", answers[process.rank]] if answers.get(process.rank) else []),
            ]
        )
        for process in asked
    }


def main_stack(text: str) -> tuple[str, ...]:
    """Returns the frames of the main thread, innermost first, as `function (file:line)`; empty when none is known. Pure."""
    threads: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if _THREAD.match(line):
            threads.append((line, []))
        elif threads and (frame := _FRAME.match(line)):
            name, file, number = (frame["name"], frame["file"], frame["line"]) if frame["name"] else frame.group("spied", "spied_file", "spied_line")
            threads[-1][1].append(f"{name} ({file}:{number})")
    named = next((frames for header, frames in threads if "MainThread" in header), None)  # py-spy tells names
    oldest = threads[-1][1] if threads else []  # faulthandler lists the newest thread first
    return tuple(frame for frame in (oldest if named is None else named) if not _OURS.search(frame))


def in_collective(frames: Iterable[str]) -> bool:
    """Whether a stack (innermost frame first) ends in a collective operation. Pure."""
    return any(_COLLECTIVE.search(frame) for frame in tuple(frames)[:_INNER_FRAMES])


def _stat_fields(pid: int) -> list[str] | None:
    """Returns the fields of `/proc/PID/stat` from the state on."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()


def _descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(below for child in children for below in _descendants(child))]


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def _is_frozen(pid: int) -> bool:
    facts = process_facts(pid)
    return facts is not None and facts.state.frozen


def _kernel_wait(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/wchan").read_text().strip("0\n") or "nothing"
    except OSError:  # it has ended, or this kernel does not tell
        return "not known"


def _spy_on(pid: int) -> "subprocess.Popen[str] | None":
    program = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if program is None:
        return None
    command = [program, "dump", "--nonblocking", "--full-filenames", "--pid", str(pid)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True)


def _finish(spy: "subprocess.Popen[str]", *, deadline: float) -> str:
    """Returns what py-spy found; nothing when it may not look (ptrace is forbidden) or takes too long."""
    try:
        output, _ = spy.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        spy.kill()
        spy.communicate()
        return ""
    return output.strip() if spy.returncode == 0 else ""


def _answer(process: RankProcess, *, deadline: float) -> str:
    """Waits until a rank's answer is there with its main thread and grows no more, or the rank has ended. On a busy machine it comes in parts."""
    text, since = "", time.monotonic()
    while time.monotonic() < deadline and process_facts(process.pid) is not None:
        if _is_whole(text) and time.monotonic() - since > _QUIET_S:
            break
        time.sleep(_QUIET_S / 5)
        now = _written(process.answer)
        if now != text:
            text, since = now, time.monotonic()
    return _written(process.answer).strip()


def _written(answer: Path) -> str:
    return answer.read_text(errors="replace") if answer.exists() else ""


def _is_whole(text: str) -> bool:
    """Whether faulthandler has come to its end. Pure."""
    *_, last = ["", *text.splitlines()]
    return _OUTERMOST.match(last) is not None
