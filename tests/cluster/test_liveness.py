"""Alive, unknown, gone, ended: the table of `cluster.liveness`."""

import pytest

from cluster.launchers.protocol import JobState
from cluster.liveness import CLOCK_SKEW_S, FRESH_S, Life, Signs, Silence, judge
from schemas.progress import Heartbeat

LOST_AFTER_S = 300.0
OLD = LOST_AFTER_S + 1


@pytest.mark.parametrize(
    ("job", "has_exit", "silent_s", "has_beat", "dead", "expected"),
    [
        (JobState.RUNNING, True, 0.0, True, False, Life.ENDED),
        (JobState.UNKNOWN, True, OLD, False, True, Life.ENDED),
        (JobState.PENDING, False, OLD, False, False, Life.ALIVE),
        (JobState.RUNNING, False, OLD, True, False, Life.ALIVE),
        (JobState.RUNNING, False, 0.0, True, True, Life.GONE),
        (JobState.UNKNOWN, False, FRESH_S - 1, True, False, Life.ALIVE),
        (JobState.ABSENT, False, FRESH_S - 1, True, False, Life.ALIVE),
        (JobState.ENDED, False, FRESH_S - 1, True, False, Life.ALIVE),
        (JobState.UNKNOWN, False, OLD * 100, True, False, Life.UNKNOWN),
        (JobState.UNKNOWN, False, OLD * 100, False, False, Life.UNKNOWN),
        (JobState.ABSENT, False, LOST_AFTER_S - 1, True, False, Life.UNKNOWN),
        (JobState.ABSENT, False, OLD, True, False, Life.GONE),
        (JobState.ABSENT, False, LOST_AFTER_S - 1, False, False, Life.UNKNOWN),
        (JobState.ABSENT, False, OLD, False, False, Life.GONE),
        (JobState.ENDED, False, FRESH_S + 1, True, False, Life.GONE),
        (JobState.ENDED, False, 0.0, False, False, Life.GONE),
    ],
)
def test_judgement(job: JobState, has_exit: bool, silent_s: float, has_beat: bool, dead: bool, expected: Life) -> None:
    signs = Signs(job=job, has_exit_record=has_exit, silent_s=silent_s, has_started=has_beat, process_dead=dead)
    assert judge(signs, lost_after_s=LOST_AFTER_S) is expected


def beat(*, sequence: int, at: float) -> Heartbeat:
    return Heartbeat(key="k", node_rank=0, host="h", agent_pid=1, epoch=0, sequence=sequence, at=at, ranks=())


def test_silence_counts_from_the_last_change_as_seen_here() -> None:
    silence = Silence()
    assert silence.observe([beat(sequence=1, at=50.0)], claimed=True, now=0.0, wall=1000.0, began_at=0.0) == 0.0
    assert silence.observe([beat(sequence=1, at=50.0)], claimed=True, now=7.0, wall=1007.0, began_at=0.0) == 7.0
    assert silence.observe([beat(sequence=2, at=51.0)], claimed=True, now=8.0, wall=1008.0, began_at=0.0) == 0.0


@pytest.mark.parametrize("skew_s", [-CLOCK_SKEW_S, CLOCK_SKEW_S])
def test_a_clock_that_jumps_an_hour_makes_no_silence(skew_s: float) -> None:
    silence = Silence()
    assert silence.observe([beat(sequence=1, at=10_000.0)], claimed=True, now=0.0, wall=10_000.0 + skew_s, began_at=0.0) == 0.0


def test_what_is_older_than_any_skew_is_silent_at_first_sight() -> None:
    assert Silence().observe([beat(sequence=1, at=0.0)], claimed=True, now=0.0, wall=2 * CLOCK_SKEW_S, began_at=0.0) == 2 * CLOCK_SKEW_S


def test_without_a_heartbeat_silence_counts_from_the_submission() -> None:
    assert Silence().observe([], claimed=True, now=0.0, wall=2 * CLOCK_SKEW_S, began_at=0.0) == 2 * CLOCK_SKEW_S
    assert Silence().observe([], claimed=True, now=0.0, wall=100.0, began_at=90.0) == 0.0


def test_a_new_claim_is_a_sign_of_life() -> None:
    silence = Silence()
    assert silence.observe([], claimed=False, now=50.0, wall=1000.0, began_at=1000.0) == 0.0
    assert silence.observe([], claimed=True, now=60.0, wall=1010.0, began_at=1000.0) == 0.0
    assert silence.observe([], claimed=True, now=65.0, wall=1015.0, began_at=1000.0) == 5.0
