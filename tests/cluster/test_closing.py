"""An attempt that a supervisor claimed in order to close it, and who finds that claim."""

from pathlib import Path

import pytest

from cluster.attempt import claim_attempt, read_claim, read_exit
from cluster.closing import claim_to_close, close_unbegun, is_to_close
from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from schemas.attempt import CancelRequest, Cause
from schemas.canonical import canonical_json
from tests.fakes.job_request import ARTIFACT, gang_request


@pytest.mark.parametrize(
    ("cause", "is_cancelled", "closed_with"),
    [
        (Cause.QUEUE, False, Cause.QUEUE),
        (Cause.NODE, True, Cause.NODE),
        (None, True, Cause.CANCELLED),
        (None, False, Cause.KILLED),
    ],
)
def test_who_finds_the_claim_closes_the_attempt_as_it_was_meant(tmp_path: Path, cause: Cause | None, is_cancelled: bool, closed_with: Cause) -> None:
    storage, attempt = FileStorage(tmp_path / "data"), ArtifactLayout(ARTIFACT).attempt("", 0)
    spec = gang_request(tmp_path, key="k", withdraw_after_s=60.0)
    if is_cancelled:
        storage.create_exclusive(attempt.cancel, canonical_json(CancelRequest(reason="enough", at=1.0)))
    assert claim_to_close(storage, attempt, spec=spec, cause=cause)
    assert not claim_attempt(storage, attempt, key="k", submission="4711.0"), "a job that starts late loses"
    claim = read_claim(storage, attempt)
    assert claim is not None
    assert is_to_close(claim)
    record = close_unbegun(storage, spec, claim=claim)
    assert record.cause is closed_with
    assert close_unbegun(storage, spec, claim=claim) == record == read_exit(storage, attempt), "closed once"


def test_a_jobs_own_claim_is_not_for_closing(tmp_path: Path) -> None:
    storage, attempt = FileStorage(tmp_path / "data"), ArtifactLayout(ARTIFACT).attempt("", 0)
    spec = gang_request(tmp_path, key="k")
    assert claim_attempt(storage, attempt, key="k", submission="4711.0")
    assert not claim_to_close(storage, attempt, spec=spec, cause=Cause.QUEUE), "a job was faster"
    claim = read_claim(storage, attempt)
    assert claim is not None
    assert not is_to_close(claim)
