"""How often a job is expected to fail."""

from pathlib import Path

import pytest

from cluster.failure_rate import Exposure, failures_among, mtbf_s, read_exposure
from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from schemas.attempt import Cause, Claim, ExitRecord, Incident
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.job import MTBF_PRIOR_S
from schemas.progress import Heartbeat
from tests.fakes.job_request import ARTIFACT, gang_request

LAYOUT = ArtifactLayout(ARTIFACT)


def incident(cause: Cause) -> Incident:
    return Incident(epoch=0, at=1.0, cause=cause, rank=0, step=1, committed_step=0, exit_status=1, evidence=(), decision="restart", reason="because")


def test_it_begins_at_the_prior_and_follows_what_is_seen() -> None:
    assert mtbf_s(Exposure()) == MTBF_PRIOR_S
    assert mtbf_s(Exposure(600.0, 10)) < 150.0, "a failure a minute, for ten minutes"
    assert mtbf_s(Exposure(86_400.0, 0)) == pytest.approx(2 * 86_400.0, rel=0.02), "a day in peace"
    assert mtbf_s(Exposure(10 * 86_400.0, 100)) == pytest.approx(8640.0, rel=0.01)


def test_only_what_comes_unannounced_is_a_failure() -> None:
    announced = {Cause.FINISHED, Cause.CANCELLED, Cause.PREEMPTION, Cause.TIME_LIMIT, Cause.BUDGET, Cause.QUEUE}
    assert failures_among(map(incident, announced)) == 0
    assert failures_among(map(incident, set(Cause) - announced)) == len(set(Cause) - announced)


def test_exposure_is_read_up_to_an_attempt_and_ends_with_its_last_heartbeat(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "data")
    for number, (seen_at, ended) in enumerate([(150.0, True), (120.0, False), (500.0, True)]):
        spec = gang_request(tmp_path).model_copy(update={"attempt": number, "key": f"k{number}"})
        attempt = LAYOUT.attempt("", number)
        claim = Claim(key=spec.key, host="h", pid=1, pid_started=1.0, process_table="t", submission="s", claimed_at=100.0)
        beat = Heartbeat(key=spec.key, node_rank=0, host="h", agent_pid=1, epoch=0, sequence=0, at=seen_at, ranks=())
        objects = {attempt.spec: spec, attempt.claim: claim, attempt.heartbeat(0, 0): beat, attempt.incident(0): incident(Cause.KILLED)}
        if ended:
            causes = (Cause.KILLED, Cause.PREEMPTION, Cause.NODE)
            objects[attempt.exit] = ExitRecord(
                key=spec.key,
                exit_code=ExitCode.DONE,
                cause=Cause.FINISHED,
                message="",
                epoch=0,
                incidents=tuple(map(incident, causes)),
                ended_at=9e9,
            )
        for key, value in objects.items():
            storage.create_exclusive(key, canonical_json(value))
    assert read_exposure(storage, LAYOUT, step_name="", before=0) == Exposure()
    assert read_exposure(storage, LAYOUT, step_name="", before=2) == Exposure(50.0 + 20.0, 2 + 1)
    assert read_exposure(storage, LAYOUT, step_name="") == Exposure(50.0 + 20.0 + 400.0, 2 + 1 + 2)


def test_an_attempt_that_never_began_has_seen_nothing(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "data")
    storage.create_exclusive(LAYOUT.attempt("", 0).spec, canonical_json(gang_request(tmp_path)))
    assert read_exposure(storage, LAYOUT, step_name="") == Exposure()
