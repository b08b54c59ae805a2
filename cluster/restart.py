"""Why processes ended, and whether they start again. PURE: facts in, decisions out; no clock, no storage, no process.

| how a process ended | class | answer |
|---|---|---|
| SIGKILL, SIGTERM, SIGINT, SIGHUP, SIGQUIT from outside | `killed` | restart: interruption |
| exit code 9 | `storage` | restart: failure |
| SIGSEGV, SIGABRT, SIGBUS, … | `user code` | restart: failure |
| exit code 2, 3, 4, 5, 7, 8 | `user code`, `data`, `storage` | stop with that code |
| exit code 6, MemoryError, the kernel's OOM killer | `out of memory` | stop with 6: as it is, it would end the same way |
| exit code 75 | `preemption` | stop with 75: resumable |
| no space, I/O error, stale handle in the last lines | `storage` | restart: failure |
| the rendezvous port was taken | `node` | restart: interruption |
| peers' connection reset | echo of another process's end; `node` when nothing else ended | restart: interruption |
| any other exit code with a traceback | `user code` | restart: failure |
| any other | `unknown` | restart: failure |
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from schemas.exit_code import ExitCode
from schemas.job import Cause, Incident, RestartLimits

INTERRUPTIONS = frozenset({Cause.PREEMPTION, Cause.TIME_LIMIT, Cause.NODE, Cause.KILLED})
"""Causes that are nobody's mistake: they use the large budget and restart at once."""

EVIDENCE_LINES = 20
"""Last lines of output that are kept with an incident."""

_MOST_DELAY_S = 60.0
_OUTSIDE_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
_STOP_CODES: dict[ExitCode, Cause] = {
    ExitCode.USAGE: Cause.USER_CODE,
    ExitCode.DATA_VERDICT: Cause.DATA,
    ExitCode.GATE: Cause.DATA,
    ExitCode.POLICY: Cause.USER_CODE,
    ExitCode.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
    ExitCode.VERIFICATION: Cause.STORAGE,
    ExitCode.LEASE_HELD: Cause.STORAGE,
    ExitCode.INTERRUPTED: Cause.PREEMPTION,
}
"""Exit codes of compute that no restart can mend: the job stops with them."""

_OUT_OF_MEMORY = re.compile(
    r"(?m)^MemoryError\b|OutOfMemoryError|CUDA out of memory|can't allocate memory|Cannot allocate memory|std::bad_alloc|ArrowMemoryError|"
    r"DefaultCPUAllocator: not enough memory"
)
_STORAGE = re.compile(r"No space left on device|Disk quota exceeded|Input/output error|Stale file handle|Read-only file system|Remote I/O error")
_PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
_ECHO = re.compile(
    r"Connection reset by peer|Connection closed by peer|Broken pipe|remote process exited|recvValue failed|"
    r"Socket closed|Timed out waiting \d+ms for (recv|send)|DistBackendError|DistNetworkError|failed to recv, got 0 bytes|"
    r"Application timeout caused pair closure|Rank \d+ successfully reached monitoredBarrier"
)
_TRACEBACK = "Traceback (most recent call last):"
_ERROR_LINE = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Warning|Iteration|Timeout)?(?::|$)")


@dataclass(frozen=True)
class Ending:
    """How one process ended, as seen from outside."""

    name: str
    """`rank 1`, `item 12`: for messages."""
    exit_status: int
    """Exit code; negative: killed by that signal."""
    tail: tuple[str, ...] = ()
    """Last lines of its output."""
    oom_killed: bool = False
    """Whether the kernel's OOM killer struck in the job's control group meanwhile."""


@dataclass(frozen=True)
class Finding:
    """Why a process ended."""

    cause: Cause
    """The class."""
    evidence: tuple[str, ...]
    """What led to it: signal or exit code, then the last lines of output."""
    message: str
    """One line for people, or the error's own lines."""
    stop_code: ExitCode | None = None
    """Set when no restart can mend it: the job stops with this code."""
    echo: bool = False
    """Whether it only answers to another process's end."""


@dataclass(frozen=True)
class Decision:
    """What to do after an incident."""

    action: Literal["restart", "stop"]
    """Start again, or end the job."""
    reason: str
    """Why."""
    delay_s: float = 0.0
    """Pause before the restart."""
    exit_code: ExitCode = ExitCode.DONE
    """What the job ends with, when it stops."""


def classify(ending: Ending) -> Finding:
    """Returns why a process ended, by the rules in this module's table, first match first."""
    status, tail = ending.exit_status, ending.tail[-EVIDENCE_LINES:]
    how = f"killed by {_signal_name(-status)}" if status < 0 else f"exit code {status}"
    evidence = (how, *tail)
    error = error_lines(tail)
    text = "\n".join(tail)

    def found(cause: Cause, message: str = "", *, stop_code: ExitCode | None = None, echo: bool = False) -> Finding:
        return Finding(cause=cause, evidence=evidence, message=f"{ending.name}: {message or error or how}", stop_code=stop_code, echo=echo)

    if ending.oom_killed and status == -signal.SIGKILL:
        return found(Cause.OUT_OF_MEMORY, f"{how} by the kernel: out of memory", stop_code=ExitCode.OUT_OF_MEMORY)
    if status < 0 and -status in _OUTSIDE_SIGNALS:
        return found(Cause.KILLED, how)
    if status < 0 and not _OUT_OF_MEMORY.search(text):  # a C++ library that ends a process over a lost peer aborts it
        return found(Cause.NODE, echo=True) if _ECHO.search(text) else found(Cause.USER_CODE, how)
    if status in _STOP_CODES:
        return found(_STOP_CODES[ExitCode(status)], stop_code=ExitCode(status))
    if status == ExitCode.UNREACHABLE:
        return found(Cause.STORAGE)
    if _OUT_OF_MEMORY.search(text):
        return found(Cause.OUT_OF_MEMORY, stop_code=ExitCode.OUT_OF_MEMORY)
    if _PORT_TAKEN.search(text):
        return found(Cause.NODE, "the rendezvous port was taken")
    if _ECHO.search(error or text):
        return found(Cause.NODE, echo=True)
    if _STORAGE.search(text):
        return found(Cause.STORAGE)
    return found(Cause.USER_CODE if _TRACEBACK in text or error else Cause.UNKNOWN)


def first_cause(findings: Sequence[Finding]) -> int:
    """Returns the index of the finding that explains the others: the first that is no echo, or the first of all.

    Args:
        findings: in the order in which the processes ended; at least one.
    """
    return next((index for index, finding in enumerate(findings) if not finding.echo), 0)


def decide(history: Sequence[Incident], *, cause: Cause, idle: int, limits: RestartLimits, stop_code: ExitCode | None = None) -> Decision:
    """Returns whether ranks (or an item) start again after an incident.

    Args:
        history: earlier incidents that count, oldest first.
        cause: why they ended.
        idle: starts in a row, this one included, that brought nothing new (`idle_starts`).
        limits: the budgets.
        stop_code: set when no restart can mend the cause.
    """
    if stop_code is not None:
        return Decision("stop", f"{cause.value}: starting again would end the same way", exit_code=stop_code)
    if cause is Cause.CANCELLED:
        return Decision("stop", "cancelled", exit_code=ExitCode.INTERRUPTED)
    if idle >= limits.max_attempts_without_progress:
        reason = f"{idle} starts in a row brought nothing new (restart.max_attempts_without_progress: {limits.max_attempts_without_progress})"
        return Decision("stop", reason, exit_code=ExitCode.POLICY)
    interruption = cause in INTERRUPTIONS
    used = sum((incident.cause in INTERRUPTIONS) == interruption for incident in history)
    word, most = ("interruptions", limits.max_interruptions) if interruption else ("failures", limits.max_failures)
    if used >= most:
        return Decision("stop", f"{used + 1} {word} (restart.max_{word}: {most})", exit_code=ExitCode.POLICY)
    delay_s = 0.0 if interruption else min(limits.backoff_s * 2**used, _MOST_DELAY_S)
    return Decision("restart", f"{cause.value}: restart {used + 1} of at most {most} after {word}", delay_s=delay_s)


def idle_starts(history: Sequence[Incident], *, committed_step: int, baseline: int) -> int:
    """Returns how many of the newest starts in a row, this one included, ended with nothing committed beyond the start before.

    Args:
        history: earlier incidents that count, oldest first.
        committed_step: newest committed step now.
        baseline: newest committed step before the first start of `history`.
    """
    newest, idle = baseline, 0
    for step in (*(incident.committed_step for incident in history), committed_step):
        idle = 0 if step > newest else idle + 1
        newest = max(newest, step)
    return idle


def error_lines(tail: Sequence[str]) -> str:
    """Returns the last error that Python or Headrace printed: its line and the indented lines after it (why, mend); empty when there is none."""
    for index in range(len(tail) - 1, -1, -1):
        if _ERROR_LINE.match(tail[index]) and (_names_an_error(tail[index]) or _follows_a_stack(tail, index)):
            following = [line for line in tail[index + 1 :] if line.startswith("  ")]
            return "\n".join([tail[index], *following])
    return ""


def _names_an_error(line: str) -> bool:
    return bool(re.match(r"^[\w.]*(?:Error|Exception|Interrupt|Exit)\b", line))


def _follows_a_stack(tail: Sequence[str], index: int) -> bool:
    return index > 0 and tail[index - 1].startswith("    ") and any(line == _TRACEBACK for line in tail[:index])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
