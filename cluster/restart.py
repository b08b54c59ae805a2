"""Why processes ended, and whether they start again. PURE: facts in, decisions out; no clock, no storage, no process.

| how a process ended | class | answer |
|---|---|---|
| SIGKILL, SIGTERM, SIGINT, SIGHUP, SIGQUIT from outside | `killed` | restart: interruption |
| exit code 9 | `storage` | restart: failure |
| SIGBUS: a mapped file failed, shrank, or shared memory is full | `storage` | restart: failure |
| SIGSEGV, SIGABRT, SIGILL, … | `user code` | restart: failure |
| exit code 2, 3, 4, 5, 7, 8 | `user code`, `data`, `storage` | stop with that code |
| exit code 6, MemoryError, the kernel's OOM killer | `out of memory` | `restart.on_out_of_memory`: stop with 6, or a smaller micro-batch |
| NumericError: bad loss or gradients | `numeric` | `restart.on_bad_numbers`: stop with 5, or rewind: failure |
| CorruptStateError: weights changed by themselves | `numeric` | restart: failure |
| exit code 75 | `preemption` | stop with 75: resumable |
| no space, I/O error, stale handle in the last lines | `storage` | restart: failure |
| the rendezvous port was taken | `node` | restart: interruption |
| peers' connection reset | echo of another process's end; `node` when nothing else ended | restart: interruption |
| any other exit code with a traceback | `user code` | restart: failure |
| any other | `unknown` | restart: failure |

Causes that are seen from outside (`hang`, `time limit`, a lost node) arrive here as findings; `budget` stops the job with 5: only people raise it.
Answers that change numbers, a smaller micro-batch and a rewind, are given only when the recipe asks for them; the agent leaves an act (`schemas.act`)
before anything follows.
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.act import Act, OnBadNumbers
from schemas.attempt import Answer, Cause, Incident
from schemas.exit_code import ExitCode
from schemas.job import RestartLimits

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
_BAD_NUMBERS = "NumericError:"
_CORRUPT_STATE = "CorruptStateError:"
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

    action: Answer
    """Start again (as it was, or otherwise), or end the job."""
    reason: str
    """Why."""
    delay_s: float = 0.0
    """Pause before the restart."""
    exit_code: ExitCode = ExitCode.DONE
    """What the job ends with, when it stops."""
    repeats: bool = False
    """Stopped because starting again would end the same way: the error itself says what to do."""
    micro_batch_size: int | None = None
    """Of a smaller micro-batch."""
    back_to_step: int | None = None
    """Of a rewind: the committed step to go on from; 0 is the beginning."""


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
    if status == -signal.SIGBUS:
        return found(Cause.STORAGE, f"{how}: a mapped file failed or shrank, or shared memory is full")
    if status < 0 and not _OUT_OF_MEMORY.search(text):  # a C++ library that ends a process over a lost peer aborts it
        return found(Cause.NODE, echo=True) if _ECHO.search(text) else found(Cause.USER_CODE, how)
    if error.startswith(_CORRUPT_STATE):
        return found(Cause.NUMERIC)
    if error.startswith(_BAD_NUMBERS):
        return found(Cause.NUMERIC, stop_code=ExitCode.POLICY)
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


def decide(
    history: Sequence[Incident],
    *,
    cause: Cause,
    idle: int,
    limits: RestartLimits,
    stop_code: ExitCode | None = None,
    acts: Sequence[Act] = (),
    commits: Sequence[int] = (),
) -> Decision:
    """Returns whether ranks (or an item) start again after an incident, and how.

    Args:
        history: earlier incidents that count, oldest first.
        cause: why they ended.
        idle: starts in a row, this one included, that brought nothing new (`idle_starts`).
        limits: the budgets, and what may be done that changes numbers.
        stop_code: set when no restart can mend the cause as it is.
        acts: what was done so far that changed numbers, oldest first.
        commits: committed steps, ascending.
    """
    if cause is Cause.BUDGET:
        return Decision("stop", "a larger budget.gpu_hours goes on", exit_code=ExitCode.POLICY, repeats=True)
    if stop_code is ExitCode.INTERRUPTED:
        return Decision("stop", f"{cause.value}: the next attempt goes on", exit_code=stop_code)
    if cause is Cause.OUT_OF_MEMORY and (size := _next_micro_batch(acts, limits)) is not None:
        return Decision("smaller micro-batch", f"{cause.value}: micro-batch {size} from now on, at the same global batch", micro_batch_size=size)
    rewinds = cause is Cause.NUMERIC and stop_code is not None and limits.on_bad_numbers is OnBadNumbers.REWIND
    if stop_code is not None and not rewinds:
        return Decision("stop", f"{cause.value}: starting again would end the same way", exit_code=stop_code, repeats=True)
    if cause is Cause.CANCELLED:
        return Decision("stop", "cancelled", exit_code=ExitCode.INTERRUPTED)
    if idle >= limits.max_attempts_without_progress:
        reason = f"{idle} starts in a row brought nothing new (restart.max_attempts_without_progress: {limits.max_attempts_without_progress})"
        return Decision("stop", reason, exit_code=ExitCode.POLICY)
    if cause is Cause.TIME_LIMIT:
        return Decision("restart", "time limit: the next allocation goes on, and uses up no budget")
    interruption = cause in INTERRUPTIONS
    used = sum((incident.cause in INTERRUPTIONS) == interruption for incident in history if _counts(incident))
    word, most = ("interruptions", limits.max_interruptions) if interruption else ("failures", limits.max_failures)
    if used >= most:
        return Decision("stop", f"{used + 1} {word} (restart.max_{word}: {most})", exit_code=ExitCode.POLICY)
    if rewinds:
        back = _rewound(commits, limits.rewind_commits)
        return Decision("rewind", f"{cause.value}: back to step {back}, and the batches since are left out", back_to_step=back)
    delay_s = 0.0 if interruption else min(limits.backoff_s * 2**used, _MOST_DELAY_S)
    return Decision("restart", f"{cause.value}: restart {used + 1} of at most {most} after {word}", delay_s=delay_s)


def _counts(incident: Incident) -> bool:
    """Whether an incident uses up a budget. The end of an allocation is no fault, and sizes to try are few by themselves."""
    return incident.cause is not Cause.TIME_LIMIT and incident.decision != "smaller micro-batch"


def _next_micro_batch(acts: Sequence[Act], limits: RestartLimits) -> int | None:
    """Returns the largest size that is left to try, or None."""
    tried = [act.micro_batch_size for act in acts if act.micro_batch_size is not None]
    return next((size for size in limits.micro_batch_sizes if not tried or size < min(tried)), None)


def _rewound(commits: Sequence[int], count: int) -> int:
    """Returns the step of the `count`-th newest commit; of the oldest where there are fewer, and the beginning where there is none."""
    return commits[-min(count, len(commits))] if commits else 0


def idle_starts(history: Sequence[Incident], *, committed_step: int, baseline: int) -> int:
    """Returns how many of the newest starts in a row, this one included, ended with nothing committed beyond the start before.

    After a rewind, what is committed beyond the step that it went back to is new. A start with another micro-batch is the first of its kind.

    Args:
        history: earlier incidents that count, oldest first.
        committed_step: newest committed step now.
        baseline: newest committed step before the first start of `history`.
    """
    newest, idle = baseline, 0
    for incident in history:
        idle = 0 if incident.committed_step > newest or incident.decision == "smaller micro-batch" else idle + 1
        newest = max(newest, incident.committed_step) if incident.back_to_step is None else incident.back_to_step
    return 0 if committed_step > newest else idle + 1


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
