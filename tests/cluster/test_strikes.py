"""Which nodes are better avoided: who is struck, for what, and for how long."""

from pathlib import Path

import pytest

from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from cluster.strikes import EXPIRY_S, Strike, nodes_to_avoid, read_strikes, strikes_of
from schemas.attempt import AttemptVerdict, Cause, ExitRecord, Incident
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.progress import Heartbeat
from tests.fakes.job_request import ARTIFACT, gang_request

CORRUPT = "CorruptStateError: weights changed between two updates"


def incident(cause: Cause, *, rank: int = -1, evidence: tuple[str, ...] = ()) -> Incident:
    return Incident(
        epoch=0, at=100.0, cause=cause, rank=rank, step=1, committed_step=0, exit_status=1, evidence=evidence, decision="restart", reason="because"
    )


def ended(*incidents: Incident) -> ExitRecord:
    return ExitRecord(key="k", exit_code=ExitCode.INTERRUPTED, cause=Cause.NODE, message="m", epoch=0, incidents=incidents, ended_at=200.0)


def beats(*last_at: float) -> tuple[Heartbeat, ...]:
    """The last heartbeats of node1.site, node2.site, …"""
    return tuple(
        Heartbeat(key="k", node_rank=rank, host=f"node{rank + 1}.site", agent_pid=1, epoch=0, sequence=9, at=at, ranks=())
        for rank, at in enumerate(last_at)
    )


@pytest.mark.parametrize(
    ("happened", "last_at", "hosts"),
    [
        (incident(Cause.NODE), (90.0, 99.0), ["node1.site"]),
        (incident(Cause.NODE), (99.0, 90.0), ["node2.site"]),
        (incident(Cause.NODE), (99.0, 98.5), []),
        (incident(Cause.NODE), (99.0,), ["node1.site"]),
        (incident(Cause.NODE), (), []),
        (incident(Cause.NODE, rank=3), (90.0, 99.0), []),
        (incident(Cause.NUMERIC, rank=3, evidence=(CORRUPT,)), (99.0, 99.0), ["node2.site"]),
        (incident(Cause.NUMERIC, rank=3, evidence=("NumericError: loss is nan",)), (99.0, 99.0), []),
        (incident(Cause.USER_CODE, rank=0), (90.0, 99.0), []),
        (incident(Cause.PREEMPTION), (90.0, 99.0), []),
    ],
    ids=[
        "the first node was lost",
        "the second node was lost",
        "nobody knows which",
        "there is only one",
        "none ever spoke",
        "a rank whose peer was lost is not to blame",
        "weights changed by themselves",
        "bad numbers are the recipe's",
        "user code",
        "preemption",
    ],
)
def test_hardware_is_struck_and_nothing_else(happened: Incident, last_at: tuple[float, ...], hosts: list[str]) -> None:
    assert [strike.host for strike in strikes_of(ended(happened), beats(*last_at), ranks_per_node=2)] == hosts


def test_the_loss_that_only_the_launcher_knows_of_is_a_strike() -> None:
    record = ended(incident(Cause.PREEMPTION), incident(Cause.PREEMPTION))
    assert strikes_of(record, beats(90.0, 99.0), ranks_per_node=1, end=Cause.NODE) == (Strike("node1.site", 100.0),)


def test_nodes_are_avoided_from_the_second_strike_until_it_expires() -> None:
    strikes = [Strike("b", 1000.0), Strike("b", 2000.0), Strike("a", 2000.0)]
    assert nodes_to_avoid(strikes, now=2001.0) == ("b",)
    assert nodes_to_avoid(strikes, now=1000.0 + EXPIRY_S) == ()
    assert nodes_to_avoid([*strikes, Strike("a", 2500.0)], now=2501.0) == ("a", "b")


def test_strikes_are_read_from_what_attempts_left(tmp_path: Path) -> None:
    storage, layout = FileStorage(tmp_path / "data"), ArtifactLayout(ARTIFACT)
    for number, cause in enumerate([Cause.NODE, Cause.PREEMPTION, Cause.NODE]):
        attempt = layout.attempt("", number)
        storage.create_exclusive(attempt.spec, canonical_json(gang_request(tmp_path).model_copy(update={"attempt": number, "key": f"k{number}"})))
        for beat in beats(90.0, 99.0):
            storage.create_exclusive(attempt.heartbeat(beat.node_rank, 9), canonical_json(beat))
        if number < 2:
            storage.create_exclusive(attempt.exit, canonical_json(ended(incident(cause))))
            verdict = AttemptVerdict(decision="restart", reason="r", at=1.0, cause=Cause.NODE)
            storage.create_exclusive(attempt.verdict, canonical_json(verdict))
    assert read_strikes(storage, layout, step_name="") == (Strike("node1.site", 100.0), Strike("node1.site", 100.0))
