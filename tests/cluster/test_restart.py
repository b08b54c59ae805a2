"""Why processes ended, and whether they start again: the tables of `cluster.restart`."""

import signal

import pytest

from cluster.restart import Ending, Finding, classify, decide, error_lines, first_cause, idle_starts
from schemas.exit_code import ExitCode
from schemas.job import Cause, Incident, RestartLimits

LIMITS = RestartLimits(max_failures=2, max_interruptions=5, max_attempts_without_progress=3, backoff_s=0.0)

TRACEBACK = ("Traceback (most recent call last):", '  File "job.py", line 3, in <module>', "    main()")
GLOO = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3141"
PORT = (
    "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500, "
    "useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
)


@pytest.mark.parametrize(
    ("status", "tail", "cause", "stop_code", "echo"),
    [
        (-signal.SIGKILL, (), Cause.KILLED, None, False),
        (-signal.SIGTERM, (), Cause.KILLED, None, False),
        (-signal.SIGSEGV, ("Fatal Python error: Segmentation fault",), Cause.USER_CODE, None, False),
        (-signal.SIGABRT, (), Cause.USER_CODE, None, False),
        (-signal.SIGABRT, ("terminate called after throwing an instance of 'gloo::IoException'", GLOO), Cause.NODE, None, True),
        (-signal.SIGABRT, ("terminate called after throwing an instance of 'std::bad_alloc'",), Cause.OUT_OF_MEMORY, ExitCode.OUT_OF_MEMORY, False),
        (1, (*TRACEBACK, "ValueError: no such column"), Cause.USER_CODE, None, False),
        (1, (*TRACEBACK, "my.project.Odd"), Cause.USER_CODE, None, False),
        (1, ("something went wrong",), Cause.UNKNOWN, None, False),
        (1, (*TRACEBACK, "MemoryError"), Cause.OUT_OF_MEMORY, ExitCode.OUT_OF_MEMORY, False),
        (1, (*TRACEBACK, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"), Cause.OUT_OF_MEMORY, ExitCode.OUT_OF_MEMORY, False),
        (1, (*TRACEBACK, GLOO), Cause.NODE, None, True),
        (1, (*TRACEBACK, PORT), Cause.NODE, None, False),
        (1, (*TRACEBACK, "OSError: [Errno 28] No space left on device"), Cause.STORAGE, None, False),
        (1, (*TRACEBACK, "OSError: [Errno 5] Input/output error: '/data/x'"), Cause.STORAGE, None, False),
        (ExitCode.USAGE, ("ConfigError: 1 problem",), Cause.USER_CODE, ExitCode.USAGE, False),
        (ExitCode.DATA_VERDICT, (), Cause.DATA, ExitCode.DATA_VERDICT, False),
        (ExitCode.GATE, (), Cause.DATA, ExitCode.GATE, False),
        (ExitCode.OUT_OF_MEMORY, (), Cause.OUT_OF_MEMORY, ExitCode.OUT_OF_MEMORY, False),
        (ExitCode.VERIFICATION, (), Cause.STORAGE, ExitCode.VERIFICATION, False),
        (ExitCode.LEASE_HELD, (), Cause.STORAGE, ExitCode.LEASE_HELD, False),
        (ExitCode.UNREACHABLE, (), Cause.STORAGE, None, False),
        (ExitCode.INTERRUPTED, (), Cause.PREEMPTION, ExitCode.INTERRUPTED, False),
    ],
)
def test_classification(status: int, tail: tuple[str, ...], cause: Cause, stop_code: ExitCode | None, echo: bool) -> None:
    finding = classify(Ending(name="rank 1", exit_status=int(status), tail=tail))
    assert (finding.cause, finding.stop_code, finding.echo) == (cause, stop_code, echo)


def test_an_earlier_error_in_the_output_does_not_hide_the_last_one() -> None:
    """A rank that caught a lost connection and went on to fail for a reason of its own is no echo."""
    finding = classify(Ending(name="rank 0", exit_status=1, tail=(GLOO, "went on", *TRACEBACK, "KeyError: 'input_ids'")))
    assert finding.cause is Cause.USER_CODE
    assert not finding.echo


def test_sigkill_with_a_rising_oom_count_is_out_of_memory() -> None:
    finding = classify(Ending(name="rank 1", exit_status=-signal.SIGKILL, oom_killed=True))
    assert (finding.cause, finding.stop_code) == (Cause.OUT_OF_MEMORY, ExitCode.OUT_OF_MEMORY)


def test_evidence_names_signal_and_last_lines() -> None:
    finding = classify(Ending(name="rank 1", exit_status=-signal.SIGSEGV, tail=("a", "b")))
    assert finding.evidence == ("killed by SIGSEGV", "a", "b")
    assert finding.message == "rank 1: killed by SIGSEGV"


def test_the_message_is_the_error_with_its_mend() -> None:
    tail = ("2026-11-22 INFO start", "InputError: /data/a.jsonl is missing", "  why:  it was listed in the plan", "  mend: put it back")
    finding = classify(Ending(name="item 3", exit_status=int(ExitCode.USAGE), tail=tail))
    assert finding.message == "item 3: InputError: /data/a.jsonl is missing\n  why:  it was listed in the plan\n  mend: put it back"


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ((), ""),
        (("all is well", "Epoch: 3", "Done"), ""),
        ((*TRACEBACK, "ValueError: a", "epoch 3 ended"), "ValueError: a"),
        ((*TRACEBACK, "ValueError: a", *TRACEBACK, "TypeError: b"), "TypeError: b"),
        ((*TRACEBACK, "json.decoder.JSONDecodeError: Expecting value"), "json.decoder.JSONDecodeError: Expecting value"),
    ],
)
def test_last_error_in_output(tail: tuple[str, ...], expected: str) -> None:
    assert error_lines(tail) == expected


def finding(*, echo: bool) -> Finding:
    return Finding(Cause.NODE if echo else Cause.USER_CODE, (), "", echo=echo)


@pytest.mark.parametrize(("echoes", "expected"), [((True, False), 1), ((False, True), 0), ((True, True), 0), ((True, False, False), 1)])
def test_first_cause_is_the_first_that_is_no_echo(echoes: tuple[bool, ...], expected: int) -> None:
    assert first_cause([finding(echo=echo) for echo in echoes]) == expected


def incident(cause: Cause, *, committed_step: int = -1, rank: int = 0) -> Incident:
    return Incident(
        epoch=0,
        at=0.0,
        cause=cause,
        rank=rank,
        step=committed_step,
        committed_step=committed_step,
        exit_status=1,
        evidence=(),
        decision="restart",
        reason="",
    )


@pytest.mark.parametrize(
    ("history", "cause", "action", "exit_code"),
    [
        ((), Cause.USER_CODE, "restart", ExitCode.DONE),
        ((Cause.USER_CODE,), Cause.STORAGE, "restart", ExitCode.DONE),
        ((Cause.USER_CODE, Cause.UNKNOWN), Cause.USER_CODE, "stop", ExitCode.POLICY),
        ((Cause.USER_CODE, Cause.UNKNOWN), Cause.KILLED, "restart", ExitCode.DONE),
        ((Cause.KILLED,) * 4, Cause.PREEMPTION, "restart", ExitCode.DONE),
        ((Cause.KILLED,) * 5, Cause.NODE, "stop", ExitCode.POLICY),
        ((Cause.KILLED,) * 5, Cause.HANG, "restart", ExitCode.DONE),
        ((), Cause.CANCELLED, "stop", ExitCode.INTERRUPTED),
    ],
)
def test_two_budgets(history: tuple[Cause, ...], cause: Cause, action: str, exit_code: ExitCode) -> None:
    decision = decide([incident(past) for past in history], cause=cause, idle=0, limits=LIMITS)
    assert (decision.action, decision.exit_code) == (action, exit_code)


def test_what_no_restart_can_mend_stops_at_once_with_its_code() -> None:
    decision = decide([], cause=Cause.DATA, idle=1, limits=LIMITS, stop_code=ExitCode.DATA_VERDICT)
    assert (decision.action, decision.exit_code) == ("stop", ExitCode.DATA_VERDICT)


@pytest.mark.parametrize("cause", [Cause.KILLED, Cause.USER_CODE])
def test_no_progress_stops_whatever_the_budgets_say(cause: Cause) -> None:
    assert decide([], cause=cause, idle=2, limits=LIMITS).action == "restart"
    stopped = decide([], cause=cause, idle=3, limits=LIMITS)
    assert (stopped.action, stopped.exit_code) == ("stop", ExitCode.POLICY)
    assert "max_attempts_without_progress: 3" in stopped.reason


@pytest.mark.parametrize(
    ("past", "now", "baseline", "expected"),
    [
        ((), -1, -1, 1),
        ((), 5, -1, 0),
        ((), 5, 5, 1),
        ((5,), 5, -1, 1),
        ((5, 5), 5, -1, 2),
        ((5, 5), 6, -1, 0),
        ((-1, -1), -1, -1, 3),
        ((10, 5), 7, -1, 2),
    ],
)
def test_idle_starts(past: tuple[int, ...], now: int, baseline: int, expected: int) -> None:
    history = [incident(Cause.KILLED, committed_step=step) for step in past]
    assert idle_starts(history, committed_step=now, baseline=baseline) == expected


def test_backoff_doubles_after_failures_up_to_a_minute_and_never_delays_interruptions() -> None:
    limits = RestartLimits(max_failures=10, max_interruptions=10, max_attempts_without_progress=99, backoff_s=4.0)
    failures = [incident(Cause.USER_CODE)] * 9
    delays = [decide(failures[:used], cause=Cause.USER_CODE, idle=0, limits=limits).delay_s for used in range(6)]
    assert delays == [4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert decide(failures, cause=Cause.KILLED, idle=0, limits=limits).delay_s == 0.0
