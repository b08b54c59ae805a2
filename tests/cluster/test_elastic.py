"""How many nodes the next attempt asks for, told by what past attempts left."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.elastic import PastAttempt, next_ask, not_given, reduction, refused
from schemas.gang_shape import GangShape
from schemas.job import ElasticLimits
from tests.fakes.job_request import gang_request

SHAPES = tuple(GangShape(num_nodes=nodes, ranks_per_node=8) for nodes in (4, 2, 1))
LIMITS = ElasticLimits(shapes=SHAPES, smaller_after_s=600.0)
SCARCE = "the queue did not give them"


def ran(nodes: int) -> PastAttempt:
    return PastAttempt(nodes, has_begun=True)


def withdrawn(nodes: int) -> PastAttempt:
    return PastAttempt(nodes, has_begun=False, withdrawn=SCARCE)


def cancelled(nodes: int) -> PastAttempt:
    return PastAttempt(nodes, has_begun=False)


@pytest.mark.parametrize(
    ("past", "nodes", "waits_s"),
    [
        ([], 4, None),
        ([cancelled(4)], 4, None),
        ([ran(4)], 4, 600.0),
        ([ran(4), cancelled(4)], 4, 600.0),
        ([ran(4), withdrawn(4)], 2, 600.0),
        ([ran(4), withdrawn(4), withdrawn(2)], 1, None),
        ([ran(4), withdrawn(4), ran(2)], 4, 600.0),
        ([ran(4), withdrawn(4), ran(2), withdrawn(4)], 2, 600.0),
        ([ran(6), withdrawn(6)], 4, 600.0),
        ([ran(3), withdrawn(3)], 2, 600.0),
        ([ran(1), withdrawn(1)], 1, None),
    ],
    ids=[
        "the first",
        "the first was cancelled in the queue",
        "after one that began",
        "cancelled since",
        "not given: fewer",
        "still not given: as few as allowed, and no fewer",
        "after a smaller one: all of them again",
        "and down again",
        "the recipe allows fewer by now",
        "a shape that is none any more",
        "fewer than are allowed by now",
    ],
)
def test_what_the_next_attempt_asks_for(past: list[PastAttempt], nodes: int, waits_s: float | None) -> None:
    ask = next_ask(LIMITS, past, time_limit_s=None)
    assert (ask.shape.num_nodes, ask.withdraw_after_s) == (nodes, waits_s)
    assert ask.because == (SCARCE if nodes < 4 else "")


@pytest.mark.parametrize(
    ("past", "grow_after_s", "time_limit_s", "expected"),
    [
        ([ran(4)], 60.0, None, None),
        ([ran(4)], 60.0, 100.0, 100.0),
        ([ran(4), withdrawn(4)], 60.0, None, 60.0),
        ([ran(4), withdrawn(4)], 60.0, 100.0, 60.0),
        ([ran(4), withdrawn(4)], 60.0, 40.0, 40.0),
        ([ran(4), withdrawn(4)], None, 100.0, 100.0),
    ],
)
def test_a_smaller_attempt_makes_room_only_where_the_recipe_says_when(
    past: list[PastAttempt], grow_after_s: float | None, time_limit_s: float | None, expected: float | None
) -> None:
    limits = LIMITS.model_copy(update={"grow_after_s": grow_after_s})
    assert next_ask(limits, past, time_limit_s=time_limit_s).time_limit_s == expected


@given(st.lists(st.sampled_from(("begins", "is not given", "is cancelled")), max_size=30))
def test_whatever_the_queue_does_sizes_are_allowed_and_the_smallest_is_waited_for(happens: list[str]) -> None:
    past: list[PastAttempt] = []
    for what in happens:
        ask = next_ask(LIMITS, past, time_limit_s=None)
        assert ask.shape in SHAPES
        assert ask.withdraw_after_s is None or (ask.shape != SHAPES[-1] and any(attempt.has_begun for attempt in past))
        if past and not past[-1].withdrawn:
            assert ask.shape == SHAPES[0], "only a queue that gives less makes it smaller"
        if what == "is not given" and ask.withdraw_after_s is not None:
            past.append(withdrawn(ask.shape.num_nodes))
        elif what != "is not given":
            past.append(PastAttempt(ask.shape.num_nodes, has_begun=what == "begins"))


def test_what_people_read(tmp_path: Path) -> None:
    spec = gang_request(tmp_path, num_nodes=2, attempt=3, elastic=LIMITS, withdraw_after_s=600.0)
    assert not_given(spec) == "the queue did not give 2 nodes within 10 min"
    assert not_given(spec.model_copy(update={"num_nodes": 1, "withdraw_after_s": 90.0})) == "the queue did not give 1 node within 90 s"
    assert refused(spec, launcher="slurm") == "slurm has no 2 nodes for it"
    assert refused(spec.model_copy(update={"excluded_nodes": ("a", "b")}), launcher="slurm") == "slurm has no 2 nodes other than a, b for it"
    assert reduction(spec) == ""
    assert reduction(spec.model_copy(update={"smaller_because": SCARCE})) == f"2 of 4 nodes since attempt 3: {SCARCE}"
