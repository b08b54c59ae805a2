"""What a second of training's wall time is booked as. The journal is written by hand, so every sum can be checked by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.attempt import Cause, EpochRecord, Incident
from schemas.job import MTBF_PRIOR_S
from schemas.ledger import GoodputLedger, Spent
from schemas.progress import MetricPoint
from tasks.train.ledger import AttemptTimes, EpochTimes, account, counted_steps

STEP = {"data_s": 0.1, "forward_s": 0.3, "backward_s": 0.4, "agree_s": 0.05, "optimizer_s": 0.05, "other_s": 0.1}
"""A step of one second."""


def points(
    *, epoch: int, begin: float, from_step: int, steps: int, every: int = 1, extra: dict[int, dict[str, float]] | None = None
) -> tuple[MetricPoint, ...]:
    """Points of a start whose steps take a second each, and `extra` parts at some steps."""
    counters: dict[str, float] = {}
    found = []
    for step in range(from_step + 1, from_step + steps + 1):
        for part, seconds in {**STEP, **(extra or {}).get(step, {})}.items():
            counters[part] = counters.get(part, 0.0) + seconds
        if step % every == 0 or step == from_step + steps:
            at = begin + sum(counters.values())
            found.append(MetricPoint(step=step, at=at, epoch=epoch, values={}, seconds=dict(counters), from_step=from_step))
    return tuple(found)


def epoch(number: int, *, at: float, attempt: int = 0, made: tuple[MetricPoint, ...] = ()) -> EpochTimes:
    record = EpochRecord(epoch=number, attempt=attempt, key="k", world_size=2, rendezvous="", started_at=at, reason="first start")
    return EpochTimes(record, points=made)


def incident(number: int, *, at: float, cause: Cause = Cause.KILLED, step: int = 0, committed_step: int = 0) -> Incident:
    return Incident(
        epoch=number,
        at=at,
        cause=cause,
        rank=1,
        step=step,
        committed_step=committed_step,
        exit_status=-9,
        evidence=(),
        decision="restart",
        reason="",
    )


def attempt(number: int = 0, **changes: Any) -> AttemptTimes:
    return AttemptTimes(**({"number": number, "intended_at": 100.0, "claimed_at": 102.0, "seen_at": 1e6, "ended_at": 140.0} | changes))


def spent(ledger: GoodputLedger) -> dict[str, float]:
    """What is not nothing."""
    return {what.value: pytest.approx(seconds) for what, seconds in ledger.seconds.items() if seconds > 1e-9}


def test_a_calm_training() -> None:
    made = points(epoch=0, begin=110.0, from_step=0, steps=10, extra={5: {"checkpoint_s": 0.5}, 10: {"validation_s": 2.0, "checkpoint_s": 0.5}})
    ledger = account([attempt(ended_at=124.0)], [epoch(0, at=103.0, made=made)], now=1e6)
    assert spent(ledger) == {
        "queue": 2.0,
        "start-up": 8.0,
        "useful step": 8.0,
        "data wait": 1.0,
        "checkpoint stall": 1.0,
        "evaluation": 2.0,
        "other": 1.0 + 1.0,  # between steps; from the last word until the job's end
    }
    assert (ledger.wall_s, ledger.goodput, ledger.complete) == (pytest.approx(24.0), pytest.approx(8 / 24), True)
    assert (ledger.steps, ledger.steps_redone, ledger.restarts, ledger.attempts) == (10, 0, 0, 1)


def test_what_a_later_start_did_again_is_redone_and_the_rest_of_it_useful() -> None:
    """Killed in step 8 after seven steps; the next start goes on from step 5."""
    first = points(epoch=0, begin=110.0, from_step=0, steps=7)
    second = points(epoch=1, begin=119.0, from_step=5, steps=5)
    struck = incident(0, at=117.5, step=7, committed_step=5)
    ledger = account([attempt(ended_at=124.0, incidents=(struck,))], [epoch(0, at=103.0, made=first), epoch(1, at=118.0, made=second)], now=1e6)
    assert spent(ledger) == {
        "queue": 2.0,
        "start-up": 8.0,
        "useful step": 0.8 * 10,
        "data wait": 0.1 * 10,
        "other": 0.1 * 10,
        "redone step": 2.5,
        "recovery": 1.5,
    }
    assert (ledger.steps, ledger.steps_redone, ledger.restarts) == (10, 2, 1)
    assert ledger.mtbf_s == pytest.approx((22.0 + MTBF_PRIOR_S / 2) / 1.5)


def test_between_two_points_steps_are_told_apart_by_proportion() -> None:
    """Points every ten steps: of the steps 11 to 20, five count."""
    first = points(epoch=0, begin=110.0, from_step=0, steps=20, every=10)
    second = points(epoch=1, begin=131.0, from_step=15, steps=5)
    struck = incident(0, at=130.0, step=23, committed_step=15)
    ledger = account([attempt(ended_at=136.0, incidents=(struck,))], [epoch(0, at=110.0, made=first), epoch(1, at=131.0, made=second)], now=1e6)
    assert ledger.seconds[Spent.USEFUL] == pytest.approx(0.8 * 20)
    assert ledger.seconds[Spent.REDONE] == pytest.approx(5.0)
    assert ledger.steps_redone == 8  # three of them never had a point


def test_a_start_that_fell_back_further_takes_from_all_before_it() -> None:
    """The third start finds the newest commit damaged and goes on from step 2."""
    one = points(epoch=0, begin=110.0, from_step=0, steps=5)
    two = points(epoch=1, begin=116.0, from_step=4, steps=4)
    three = points(epoch=2, begin=121.0, from_step=2, steps=8)
    attempts = [attempt(ended_at=129.0, incidents=(incident(0, at=115.0, step=5, committed_step=4), incident(1, at=120.0, step=8, committed_step=8)))]
    epochs = [epoch(0, at=110.0, made=one), epoch(1, at=116.0, made=two), epoch(2, at=121.0, made=three)]
    assert counted_steps(epochs, {}) == {0: 2, 1: 4, 2: 10}
    ledger = account(attempts, epochs, now=1e6)
    assert ledger.seconds[Spent.REDONE] == pytest.approx(3.0 + 4.0)
    assert (ledger.steps, ledger.steps_redone) == (10, 7)


def test_after_the_last_start_the_commit_that_stood_says_what_counts() -> None:
    made = points(epoch=0, begin=110.0, from_step=0, steps=7)
    struck = incident(0, at=117.0, step=7, committed_step=5)
    ledger = account([attempt(ended_at=118.0, incidents=(struck,))], [epoch(0, at=103.0, made=made)], now=1e6)
    assert (ledger.steps, ledger.steps_redone) == (5, 2)
    assert ledger.seconds[Spent.REDONE] == pytest.approx(2.0)


def test_a_hang_is_detection_but_for_the_step_it_cut_off() -> None:
    made = points(epoch=0, begin=110.0, from_step=0, steps=5)
    struck = incident(0, at=126.0, cause=Cause.HANG, step=5, committed_step=5)
    ledger = account([attempt(ended_at=127.0, incidents=(struck,))], [epoch(0, at=103.0, made=made)], now=1e6)
    assert ledger.seconds[Spent.HANG_DETECTION] == pytest.approx(10.0)
    assert ledger.seconds[Spent.REDONE] == pytest.approx(1.0)


def test_a_dead_agent_is_missed_only_as_long_as_somebody_looks() -> None:
    """Its last word came at 116; nobody looked until 1000: what is beyond `lost_after` and a moment belongs to nobody."""
    made = points(epoch=0, begin=110.0, from_step=0, steps=5)
    struck = incident(0, at=1000.0, step=5, committed_step=5)
    dead = attempt(seen_at=116.0, ended_at=1000.0, lost_after_s=20.0, incidents=(struck,))
    ledger = account([dead], [epoch(0, at=103.0, made=made)], now=1e6)
    assert ledger.seconds[Spent.HANG_DETECTION] == pytest.approx(35.0)
    assert ledger.away_s == pytest.approx(1000.0 - 116.0 - 35.0)
    assert ledger.wall_s == pytest.approx(900.0 - ledger.away_s)


def test_the_next_attempt_queues_and_starts_up_anew() -> None:
    one = points(epoch=0, begin=110.0, from_step=0, steps=5)
    two = points(
        epoch=1,
        begin=145.0,
        from_step=5,
        steps=5,
    )
    preempted = incident(0, at=115.0, cause=Cause.PREEMPTION, step=5, committed_step=5)
    first = attempt(0, ended_at=116.0, looked_at=116.5, goes_on=True, incidents=(preempted,))
    second = attempt(1, intended_at=117.0, claimed_at=137.0, ended_at=150.0)
    ledger = account([first, second], [epoch(0, at=103.0, made=one), epoch(1, at=138.0, attempt=1, made=two)], now=1e6)
    assert ledger.seconds[Spent.QUEUE] == pytest.approx(2.0 + 20.0)
    assert ledger.seconds[Spent.START_UP] == pytest.approx(8.0 + 8.0)
    assert ledger.seconds[Spent.RECOVERY] == pytest.approx(2.0)
    assert ledger.away_s == 0.0
    assert ledger.mtbf_s == pytest.approx((28.0 + MTBF_PRIOR_S / 2) / 0.5), "a preemption is announced"


@pytest.mark.parametrize("change", [{"goes_on": False}, {"goes_on": True, "looked_at": 999.0}])
def test_while_nobody_wants_it_or_nobody_looks_time_does_not_count(change: dict[str, Any]) -> None:
    first = attempt(0, ended_at=110.0, **change)
    second = attempt(1, intended_at=1000.0, claimed_at=1001.0, ended_at=1002.0)
    ledger = account([first, second], [], now=1e6)
    assert ledger.away_s == pytest.approx(890.0 if not change["goes_on"] else 889.0)
    assert ledger.wall_s == pytest.approx(902.0 - ledger.away_s)


def test_a_job_that_waits_starts_or_works() -> None:
    waiting = account([attempt(claimed_at=None, ended_at=None)], [], now=130.0)
    assert (spent(waiting), waiting.complete, waiting.goodput) == ({"queue": 30.0}, False, 0.0)
    starting = account([attempt(ended_at=None)], [epoch(0, at=103.0)], now=130.0)
    assert spent(starting) == {"queue": 2.0, "start-up": 28.0}
    made = points(epoch=0, begin=110.0, from_step=0, steps=5)
    working = account([attempt(ended_at=None)], [epoch(0, at=103.0, made=made)], now=130.0)
    assert working.until == pytest.approx(115.0), "what is under way is not known yet"


def test_a_part_that_nobody_knows_shows_as_other() -> None:
    made = points(epoch=0, begin=110.0, from_step=0, steps=1, extra={1: {"coffee_s": 3.0}})
    assert account([attempt(ended_at=114.0)], [epoch(0, at=110.0, made=made)], now=1e6).seconds[Spent.OTHER] == pytest.approx(3.1)


TIMES = st.floats(0.0, 1000.0)


@given(st.data())
def test_every_second_is_booked_once_whatever_the_clocks_say(data: st.DataObject) -> None:
    """Times of several machines in any order: nothing is booked twice, nothing is negative."""
    attempts, epochs = [], []
    for number in range(data.draw(st.integers(1, 3))):
        ended = data.draw(st.none() | TIMES)
        struck = ()
        for _ in range(data.draw(st.integers(0, 2))):
            index = len(epochs)
            made = points(
                epoch=index,
                begin=data.draw(TIMES),
                from_step=data.draw(st.integers(0, 9)),
                steps=data.draw(st.integers(1, 9)),
                every=data.draw(st.integers(1, 4)),
            )
            epochs.append(epoch(index, at=data.draw(TIMES), attempt=number, made=data.draw(st.sampled_from([made, ()]))))
            if data.draw(st.booleans()):
                cause = data.draw(st.sampled_from(Cause))
                struck += (
                    incident(
                        index, at=data.draw(TIMES), cause=cause, step=data.draw(st.integers(-1, 20)), committed_step=data.draw(st.integers(-1, 20))
                    ),
                )
        attempts.append(
            attempt(
                number,
                intended_at=data.draw(TIMES),
                claimed_at=data.draw(st.none() | TIMES),
                seen_at=data.draw(TIMES),
                ended_at=ended,
                looked_at=data.draw(st.none() | TIMES),
                goes_on=data.draw(st.booleans()),
                incidents=struck,
            )
        )
    ledger = account(attempts, epochs, now=data.draw(TIMES))
    assert min(ledger.seconds.values()) >= -1e-9
    assert ledger.away_s >= 0.0
    assert sum(ledger.seconds.values()) + ledger.away_s == pytest.approx(ledger.until - ledger.since)
    assert set(ledger.seconds) == set(Spent)
    assert ledger.steps >= 0
    assert ledger.steps_redone >= 0
