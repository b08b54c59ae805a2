"""What a watchdog makes of another node's silence."""

import pytest

from cluster.watchdog import LEAST_LIMIT_S, ProcessState
from schemas.progress import RankPulse
from tests.fakes.watched_gang import TICK_S, Gang, pulse, suspects


@pytest.mark.parametrize("elsewhere", [(), (pulse(2, limit_s=5.0),)], ids=["never heard", "at the same place"])
def test_ranks_that_wait_for_a_silent_node_do_not_hang(elsewhere: tuple[RankPulse, ...]) -> None:
    gang = Gang()
    gang.elsewhere, gang.quiet_elsewhere = elsewhere, True
    assert gang.wait(1000.0) is None


def test_once_it_speaks_again_they_have_a_moment_to_go_on() -> None:
    gang = Gang()
    gang.elsewhere, gang.quiet_elsewhere = (pulse(2, limit_s=5.0),), True
    assert gang.wait(60.0) is None
    gang.quiet_elsewhere = False
    assert LEAST_LIMIT_S - 2 * TICK_S <= gang.seconds_until_found() <= LEAST_LIMIT_S + TICK_S


def test_a_silent_node_that_had_got_further_excuses_nobody() -> None:
    gang = Gang()
    gang.elsewhere, gang.quiet_elsewhere = (pulse(2, limit_s=5.0, position=3),), True
    assert gang.seconds_until_found() <= LEAST_LIMIT_S


def test_nor_does_it_excuse_a_rank_that_somebody_holds() -> None:
    gang = Gang()
    gang.quiet_elsewhere, gang.states[1] = True, ProcessState.STOPPED
    assert suspects(gang.wait(10.0)) == [1]
