"""Why processes ended, and whether they start again: the tables of `cluster.restart`."""

import signal

import pytest

from cluster.restart import Ending, Finding, classify, decide, error_lines, first_cause, idle_starts
from schemas.act import Act, ActKind, OnBadNumbers
from schemas.attempt import Answer, Cause, Incident
from schemas.exit_code import ExitCode
from schemas.job import RestartLimits

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
        (-signal.SIGBUS, ("Fatal Python error: Bus error",), Cause.STORAGE, None, False),
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
        (ExitCode.POLICY, ("NumericError: update 8: the loss is not finite", "  why:  the same"), Cause.NUMERIC, ExitCode.POLICY, False),
        (ExitCode.POLICY, ("PolicyStopError: no progress",), Cause.USER_CODE, ExitCode.POLICY, False),
        (ExitCode.BUG, ("CorruptStateError: rank 1, after update 12: changed",), Cause.NUMERIC, None, False),
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


def incident(cause: Cause, *, committed_step: int = -1, rank: int = 0, decision: Answer = "restart", back_to_step: int | None = None) -> Incident:
    return Incident(
        epoch=0,
        at=0.0,
        cause=cause,
        rank=rank,
        step=committed_step,
        committed_step=committed_step,
        exit_status=1,
        evidence=(),
        decision=decision,
        reason="",
        back_to_step=back_to_step,
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


def test_only_people_raise_a_budget() -> None:
    """Ranks stopped as they were asked to, which would be 75 for any other reason; there is no start that could go on by itself."""
    decision = decide((), cause=Cause.BUDGET, idle=0, limits=LIMITS, stop_code=ExitCode.INTERRUPTED)
    assert (decision.action, decision.exit_code, decision.repeats) == ("stop", ExitCode.POLICY, True)


def test_backoff_doubles_after_failures_up_to_a_minute_and_never_delays_interruptions() -> None:
    limits = RestartLimits(max_failures=10, max_interruptions=10, max_attempts_without_progress=99, backoff_s=4.0)
    failures = [incident(Cause.USER_CODE)] * 9
    delays = [decide(failures[:used], cause=Cause.USER_CODE, idle=0, limits=limits).delay_s for used in range(6)]
    assert delays == [4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert decide(failures, cause=Cause.KILLED, idle=0, limits=limits).delay_s == 0.0


def smaller(size: int) -> Act:
    return Act(kind=ActKind.SMALLER_MICRO_BATCH, epoch=0, step=0, detail="", at=0.0, micro_batch_size=size)


@pytest.mark.parametrize(
    ("sizes", "acts", "action", "size"),
    [
        ((), (), "stop", None),
        ((4, 2, 1), (), "smaller micro-batch", 4),
        ((4, 2, 1), (smaller(4),), "smaller micro-batch", 2),
        ((4, 2, 1), (smaller(4), smaller(2), smaller(1)), "stop", None),
    ],
)
def test_out_of_memory_tries_smaller_micro_batches_until_none_is_left(sizes: tuple[int, ...], acts: tuple[Act, ...], action: str, size: int) -> None:
    """No budget stands in the way: the sizes are few by themselves."""
    limits = RestartLimits(max_failures=0, max_interruptions=0, max_attempts_without_progress=1, backoff_s=0.0, micro_batch_sizes=sizes)
    decision = decide([], cause=Cause.OUT_OF_MEMORY, idle=9, limits=limits, stop_code=ExitCode.OUT_OF_MEMORY, acts=acts)
    assert (decision.action, decision.micro_batch_size) == (action, size)
    assert decision.exit_code == (ExitCode.DONE if size else ExitCode.OUT_OF_MEMORY)


@pytest.mark.parametrize(("commits", "count", "back"), [((), 1, 0), ((5, 10), 1, 10), ((5, 10), 2, 5), ((5, 10), 3, 5)])
def test_bad_numbers_rewind_where_the_recipe_says_so(commits: tuple[int, ...], count: int, back: int) -> None:
    limits = LIMITS.model_copy(update={"on_bad_numbers": OnBadNumbers.REWIND, "rewind_commits": count})
    decision = decide([], cause=Cause.NUMERIC, idle=0, limits=limits, stop_code=ExitCode.POLICY, commits=commits)
    assert (decision.action, decision.back_to_step) == ("rewind", back)


@pytest.mark.parametrize("policy", [OnBadNumbers.STOP, OnBadNumbers.SKIP])
def test_bad_numbers_stop_otherwise(policy: OnBadNumbers) -> None:
    """Under `skip` the ranks answer themselves; what they give up on is final."""
    limits = LIMITS.model_copy(update={"on_bad_numbers": policy})
    decision = decide([], cause=Cause.NUMERIC, idle=0, limits=limits, stop_code=ExitCode.POLICY, commits=(5,))
    assert (decision.action, decision.exit_code, decision.repeats) == ("stop", ExitCode.POLICY, True)


def test_weights_that_changed_by_themselves_restart_whatever_the_recipe_says_of_bad_numbers() -> None:
    limits = LIMITS.model_copy(update={"on_bad_numbers": OnBadNumbers.REWIND})
    assert decide([], cause=Cause.NUMERIC, idle=0, limits=limits, commits=(5,)).action == "restart"


def test_rewinds_use_up_failures_and_end_without_progress() -> None:
    limits = LIMITS.model_copy(update={"on_bad_numbers": OnBadNumbers.REWIND})
    history = [incident(Cause.NUMERIC, decision="rewind", back_to_step=5)] * limits.max_failures
    for past, idle in ((history, 0), ([], limits.max_attempts_without_progress)):
        decision = decide(past, cause=Cause.NUMERIC, idle=idle, limits=limits, stop_code=ExitCode.POLICY, commits=(5,))
        assert (decision.action, decision.exit_code, decision.repeats) == ("stop", ExitCode.POLICY, False)


def test_sizes_to_try_use_up_no_budget() -> None:
    history = [incident(Cause.OUT_OF_MEMORY, decision="smaller micro-batch")] * 9
    assert decide(history, cause=Cause.USER_CODE, idle=0, limits=LIMITS).action == "restart"


def test_after_a_rewind_progress_counts_from_where_it_went_back_to() -> None:
    rewind = incident(Cause.NUMERIC, committed_step=40, decision="rewind", back_to_step=30)
    assert idle_starts([rewind], committed_step=30, baseline=-1) == 1
    assert idle_starts([rewind], committed_step=35, baseline=-1) == 0


def test_a_smaller_micro_batch_begins_the_count_anew() -> None:
    history = [incident(Cause.KILLED), incident(Cause.OUT_OF_MEMORY, decision="smaller micro-batch")]
    assert idle_starts(history, committed_step=-1, baseline=-1) == 1
