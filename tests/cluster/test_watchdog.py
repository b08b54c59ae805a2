"""When a gang hangs and who is to blame: signs of life and a clock's readings in, findings out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.watchdog import (
    BUSY_LIMIT_S,
    LEAST_LIMIT_S,
    PHASE_LIMIT_S,
    RESERVE_S,
    STORAGE_LIMIT_S,
    Pace,
    ProcessState,
    to_blame,
)
from schemas.progress import RankPhase
from tests.fakes.watched_gang import TICK_S, Gang, pulse, suspects

FOUND_S = LEAST_LIMIT_S - RESERVE_S


def test_silence_in_steps_is_found_within_five_seconds() -> None:
    assert FOUND_S <= Gang().seconds_until_found() <= LEAST_LIMIT_S


def test_ranks_that_give_signs_do_not_hang_however_slow_their_step() -> None:
    gang = Gang()
    for position in range(20):
        gang.beat(position=position)
        assert gang.wait(FOUND_S - 0.5) is None


def test_the_limit_follows_the_steps_that_were_seen() -> None:
    gang = Gang()
    gang.steps(30, step_s=4.0)
    assert 12.0 - RESERVE_S <= gang.seconds_until_found() + 4.0 <= 12.0 + TICK_S


def test_a_few_slow_steps_do_not_raise_the_limit_and_many_do() -> None:
    pace = Pace()
    pace.steps_s.extend([1.0] * 200 + [30.0])
    assert pace.limit_s(RankPhase.STEPPING) == LEAST_LIMIT_S
    pace.steps_s.extend([30.0] * 10)
    assert pace.limit_s(RankPhase.STEPPING) == 90.0


def test_before_steps_were_seen_the_first_one_tells_how_long_they_take() -> None:
    gang = Gang()
    gang.beat(phase=RankPhase.COMPILING)
    assert gang.wait(20.0) is None
    gang.beat(phase=RankPhase.STEPPING, step=8)
    assert 60.0 - 2 * RESERVE_S <= gang.seconds_until_found() <= 60.0


@pytest.mark.parametrize("phase", sorted(PHASE_LIMIT_S, key=lambda phase: PHASE_LIMIT_S[phase]))
def test_named_phases_have_longer_limits(phase: RankPhase) -> None:
    gang = Gang()
    gang.beat(phase=phase)
    assert PHASE_LIMIT_S[phase] - RESERVE_S <= gang.seconds_until_found() <= PHASE_LIMIT_S[phase]


def test_a_phase_that_took_long_and_ended_well_may_take_long_again_also_in_the_next_epoch() -> None:
    gang = Gang()
    gang.beat(phase=RankPhase.VALIDATING)
    assert gang.wait(100.0) is None
    gang.beat(phase=RankPhase.STEPPING)
    assert gang.look() is None
    later = Gang(pace=gang.pace)
    later.beat(phase=RankPhase.VALIDATING)
    assert 300.0 - RESERVE_S <= later.seconds_until_found() <= 301.0


def test_who_waits_for_a_rank_in_a_long_phase_does_not_hang() -> None:
    """Rank 0 alone samples, while rank 1 has gone on into the next step and waits for it there."""
    gang = Gang()
    gang.beat(0, phase=RankPhase.VALIDATING, step=7, position=5)
    gang.beat(1, step=8, position=3)
    assert gang.wait(PHASE_LIMIT_S[RankPhase.VALIDATING] - 1.0) is None
    assert suspects(gang.wait(2.0)) == [0]


def test_the_rank_that_is_furthest_behind_is_suspected() -> None:
    gang = Gang()
    gang.beat(0, step=8, position=3)
    gang.beat(1, step=8, position=1)
    assert suspects(gang.wait(6.0)) == [1]


def test_equal_ranks_are_all_suspected_and_stacks_decide() -> None:
    hang = Gang().wait(6.0)
    assert suspects(hang) == [0, 1]
    assert hang is not None
    assert to_blame(hang, in_collective={0: True, 1: False}) == 1
    assert to_blame(hang, in_collective={0: True, 1: True}) == -1
    assert to_blame(hang, in_collective={1: True}) == 0
    assert to_blame(hang, in_collective={}) == -1


def test_a_stopped_rank_is_to_blame_wherever_it_is() -> None:
    gang = Gang()
    gang.beat(1, position=9)
    gang.states[1] = ProcessState.STOPPED
    hang = gang.wait(6.0)
    assert hang is not None
    assert to_blame(hang, in_collective={0: False, 1: True}) == 1


@pytest.mark.parametrize("phase", PHASE_LIMIT_S)
def test_a_stopped_rank_is_found_in_five_seconds_in_every_phase(phase: RankPhase) -> None:
    gang = Gang()
    gang.beat(phase=phase)
    assert gang.wait(30.0) is None
    gang.states[1] = ProcessState.STOPPED
    assert gang.seconds_until_found() <= LEAST_LIMIT_S


def test_a_rank_that_is_stopped_again_and_again_for_a_moment_is_slow_and_does_not_hang() -> None:
    gang = Gang()
    for _ in range(20):
        gang.states[1] = ProcessState.STOPPED
        assert gang.wait(1.0) is None
        gang.states[1] = ProcessState.SLEEPING
        gang.beat()
        assert gang.wait(1.0) is None


@pytest.mark.parametrize("part", ["", "data_s", "forward_s"])
def test_a_rank_that_computes_on_its_own_has_longer(part: str) -> None:
    """It compiles for a new shape, or in child processes."""
    gang = Gang()
    gang.beat(part=part)
    gang.cpu_share[0] = gang.cpu_share[1] = 0.9
    assert BUSY_LIMIT_S - RESERVE_S <= gang.seconds_until_found() <= BUSY_LIMIT_S


def test_a_rank_that_the_machine_does_not_let_run_has_longer() -> None:
    gang = Gang(ranks=(0,))
    gang.beat(part="data_s")
    gang.states[0] = ProcessState.RUNNING
    assert gang.seconds_until_found() >= BUSY_LIMIT_S - RESERVE_S


def test_spinning_in_a_collective_is_no_work() -> None:
    gang = Gang()
    gang.beat(part="backward_s")
    gang.states = dict.fromkeys(gang.states, ProcessState.RUNNING)
    assert gang.seconds_until_found() <= LEAST_LIMIT_S


def test_who_stops_computing_has_no_more_time() -> None:
    gang = Gang()
    gang.beat(part="forward_s")
    gang.cpu_share[0] = gang.cpu_share[1] = 1.0
    assert gang.wait(20.0) is None
    gang.cpu_share[0] = gang.cpu_share[1] = 0.0
    assert gang.seconds_until_found() <= 2.0


def test_a_rank_that_waits_for_a_disk_has_longer() -> None:
    gang = Gang()
    gang.states[0] = gang.states[1] = ProcessState.DISK
    assert STORAGE_LIMIT_S - RESERVE_S <= gang.seconds_until_found() <= STORAGE_LIMIT_S


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_and_a_watcher_that_slept_are_no_silence(jump_s: float) -> None:
    gang = Gang()
    gang.steps(20, step_s=1.0)
    assert gang.look(after_s=jump_s) is None
    gang.beat(step=gang.pulses[0].step + 1, step_s=max(0.1, jump_s))
    assert gang.wait(FOUND_S - 1.0) is None
    assert gang.pace.limit_s(RankPhase.STEPPING) < 2 * LEAST_LIMIT_S, "the jump was no long step"


def test_a_rank_further_behind_on_another_node_excuses_this_one() -> None:
    gang = Gang()
    gang.elsewhere = (pulse(2, step=7, position=1),)
    assert gang.wait(60.0) is None
    gang.elsewhere = (pulse(2, step=7, position=3),)
    assert suspects(gang.look()) == [0, 1]


def test_a_rank_elsewhere_that_is_as_far_behind_and_granted_more_lets_this_node_wait_as_long() -> None:
    """Its own watcher sees that it computes; from here it only looks silent, as those that wait for it do."""
    gang = Gang()
    gang.elsewhere = (pulse(2, limit_s=60.0), pulse(3, limit_s=300.0, step=8))
    assert 60.0 - 2 * RESERVE_S <= gang.seconds_until_found() <= 60.0


def test_each_sign_is_told_with_the_silence_that_it_is_granted() -> None:
    gang = Gang()
    gang.beat(0, phase=RankPhase.LOADING)
    gang.look()
    granted = {pulse.rank: pulse.limit_s for pulse in gang.watchdog.granted()}
    assert granted == {0: PHASE_LIMIT_S[RankPhase.LOADING], 1: LEAST_LIMIT_S}


def test_one_that_loads_is_behind_one_that_waits_for_it_and_ranks_may_resume_at_any_step() -> None:
    gang = Gang()
    gang.beat(0, phase=RankPhase.STARTING, step=0, position=0)
    gang.beat(1, phase=RankPhase.LOADING, step=0, position=0)
    assert gang.wait(PHASE_LIMIT_S[RankPhase.STARTING] - 1.0) is None
    assert suspects(gang.wait(2.0)) == [0]


def test_a_rank_that_has_ended_is_not_watched() -> None:
    gang = Gang()
    gang.beat(0, step=8)
    gang.look()
    del gang.pulses[1]
    gang.beat(0, step=9)
    assert suspects(gang.wait(6.0)) == [0]


def test_silence_is_told_to_people() -> None:
    gang = Gang()
    gang.beat(1, phase=RankPhase.STEPPING, step=8, position=1, part="data_s")
    gang.beat(0, step=9)
    gang.states[1] = ProcessState.STOPPED
    hang = gang.wait(6.0)
    assert hang is not None
    assert hang.suspects[0].told == "rank 1: silent for 4.6 s in step 8, after data; its process is stopped"


@given(st.lists(st.tuples(st.sampled_from([0, 1]), st.floats(0.0, 4.0)), max_size=60))
def test_a_gang_whose_last_rank_goes_on_in_time_never_hangs(events: list[tuple[int, float]]) -> None:
    """Whoever is behind gives a sign at least every four seconds."""
    gang = Gang()
    for ahead, pause_s in events:
        gang.beat(1 - ahead, position=gang.pulses[1 - ahead].position)
        gang.beat(ahead, position=gang.pulses[ahead].position + 1)
        gang.beat(min(gang.pulses, key=lambda rank: gang.pulses[rank].position))
        assert gang.wait(pause_s) is None
