"""The ledger as it is read from storage."""

from pathlib import Path

import pytest

from cluster.attempt import read_claim
from cluster.closing import claim_to_close, close_unbegun
from cluster.storage import FileStorage
from schemas.attempt import Cause
from schemas.canonical import canonical_json
from schemas.ledger import GoodputLedger, Spent
from tasks.train.bookkeeping import keep_ledger, read_ledger
from tests.fakes.job_request import gang_request
from tests.fakes.training_journal import TrainingJournal, incident


@pytest.fixture
def journal(tmp_path: Path) -> TrainingJournal:
    """Two attempts; the first start is killed at step 7 and goes on from step 5 in the next."""
    made = TrainingJournal(tmp_path)
    made.attempt(0, at=100.0, ended_at=125.0, incidents=(incident(0, at=117.5, step=7, committed_step=5),), goes_on=True)
    made.epoch(0, at=104.0)
    made.points(0, begin=110.0, steps=range(1, 4))
    made.points(0, begin=110.0, steps=range(4, 8), sequence=1)
    made.epoch(1, at=118.0)
    made.points(1, begin=120.0, steps=range(6, 11), from_step=5)
    made.attempt(1, at=126.0, ended_at=140.0)
    made.epoch(2, at=129.0, attempt=1)
    made.points(2, begin=130.0, steps=range(11, 21), from_step=10)
    return made


def test_all_of_the_journal_is_read(journal: TrainingJournal) -> None:
    ledger = read_ledger(journal.storage, journal.layout, now=1e9)
    assert ledger is not None
    assert {what.value: seconds for what, seconds in ledger.seconds.items() if seconds} == pytest.approx(
        {
            "queue": 2.0 + 2.0,
            "start-up": 8.0 + 2.0,
            "useful step": 0.5 * (5 + 5 + 10),
            "data wait": 0.5 * (5 + 5 + 10),
            "redone step": 2.5,
            "recovery": 0.5 + 2.0 + 1.0,
        }
    )
    assert (ledger.steps, ledger.steps_redone, ledger.restarts, ledger.attempts, ledger.complete) == (20, 2, 2, 2, True)
    assert (ledger.since, ledger.until) == (100.0, 140.0)


def test_only_what_is_needed_of_the_metrics_is_read(journal: TrainingJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    genuine = FileStorage.read

    def noted(self: FileStorage, key: str) -> bytes:
        if "/metrics/" in key:
            read.append(key.rsplit("/", 1)[1])
        return genuine(self, key)

    monkeypatch.setattr(FileStorage, "read", noted)
    read_ledger(journal.storage, journal.layout, now=1e9)
    assert read == ["e000000-r0000-000001.jsonl", "e000001-r0000-000000.jsonl", "e000002-r0000-000000.jsonl"]


def test_before_the_first_wish_there_is_none(tmp_path: Path) -> None:
    journal = TrainingJournal(tmp_path)
    assert read_ledger(journal.storage, journal.layout, now=1e9) is None
    assert keep_ledger(journal.storage, journal.layout, now=1e9) is None


def test_a_finished_ledger_is_kept_once(journal: TrainingJournal) -> None:
    kept = keep_ledger(journal.storage, journal.layout, now=1e9)
    journal.points(2, begin=130.0, steps=range(21, 24), from_step=10, sequence=1)
    assert keep_ledger(journal.storage, journal.layout, now=2e9) == kept
    assert GoodputLedger.model_validate_json(journal.storage.read(journal.layout.goodput(2))) == kept


def test_a_start_without_counters_is_passed_over(tmp_path: Path) -> None:
    """Points of an earlier version have none: their time is start-up, and nothing fails."""
    journal = TrainingJournal(tmp_path)
    journal.attempt(0, at=100.0, ended_at=110.0)
    journal.epoch(0, at=103.0)
    data = b'{"step": 3, "at": 105.0, "epoch": 0, "values": {}}\n'
    journal.storage.create_exclusive(journal.layout.metric_segment(epoch=0, rank=0, sequence=0), data)
    ledger = read_ledger(journal.storage, journal.layout, now=1e9)
    assert ledger is not None
    assert ledger.seconds[Spent.USEFUL] == 0.0
    assert ledger.wall_s == pytest.approx(10.0)


def test_all_the_time_of_an_attempt_that_was_withdrawn_was_spent_in_the_queue(journal: TrainingJournal) -> None:
    """Its claim was taken by a supervisor, when it had waited for long enough."""
    before = read_ledger(journal.storage, journal.layout, now=1e9)
    assert before is not None
    at = before.until + 10.0
    spec = gang_request(Path(journal.storage.url).parent).model_copy(update={"attempt": 7, "key": "k7", "intended_at": at, "withdraw_after_s": 60.0})
    place = journal.layout.attempt("", 7)
    journal.storage.create_exclusive(place.spec, canonical_json(spec))
    assert claim_to_close(journal.storage, place, spec=spec, cause=Cause.QUEUE)
    claim = read_claim(journal.storage, place)
    assert claim is not None
    record = close_unbegun(journal.storage, spec, claim=claim)
    after = read_ledger(journal.storage, journal.layout, now=1e9)
    assert after is not None
    assert after.seconds[Spent.QUEUE] - before.seconds[Spent.QUEUE] == pytest.approx(record.ended_at - at)
    assert after.seconds[Spent.START_UP] == before.seconds[Spent.START_UP]
    assert after.mtbf_s >= before.mtbf_s, "nobody failed"
