"""What storage tells about attempts, and which incidents count against budgets."""

import threading
from pathlib import Path

from cluster.attempt import claim_attempt, counted_history, list_attempts, newest_commit, read_heartbeats
from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from schemas.attempt import AttemptVerdict, Cause, ExitRecord, Incident
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.progress import Heartbeat
from tests.fakes.job_request import ARTIFACT, gang_request

LAYOUT = ArtifactLayout(ARTIFACT)


def test_of_racing_claims_one_wins(tmp_path: Path) -> None:
    storage, won = FileStorage(tmp_path), []

    def claim(name: str) -> None:
        won.append(claim_attempt(storage, LAYOUT.attempt("", 0), key="k", submission=name))

    threads = [threading.Thread(target=claim, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]


def test_only_attempts_whose_intent_is_written_count(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    storage.create_exclusive(LAYOUT.attempt("", 0).spec, b"{}")
    storage.create_exclusive(LAYOUT.attempt("", 1).claim, b"{}")
    storage.create_exclusive(LAYOUT.attempt("scan", 7).spec, b"{}")
    assert list_attempts(storage, LAYOUT, step_name="") == (0,)
    assert list_attempts(storage, LAYOUT, step_name="scan") == (7,)


def test_newest_heartbeat_of_each_node(tmp_path: Path) -> None:
    storage, attempt = FileStorage(tmp_path), LAYOUT.attempt("", 0)
    for node, sequence in ((0, 1), (0, 2), (1, 9)):
        beat = Heartbeat(key="k", node_rank=node, host="h", agent_pid=1, epoch=0, sequence=sequence, at=0.0, ranks=())
        storage.create_exclusive(attempt.heartbeat(node, sequence), canonical_json(beat))
    assert [(beat.node_rank, beat.sequence) for beat in read_heartbeats(storage, attempt)] == [(0, 2), (1, 9)]


def test_newest_commit(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    assert newest_commit(storage, LAYOUT) == -1
    for step in (5, 1200, 40):
        storage.create_exclusive(LAYOUT.commit(step), b"{}")
    assert newest_commit(storage, LAYOUT) == 1200


class History:
    """Attempts that ended, one after the other."""

    def __init__(self, tmp_path: Path) -> None:
        self.storage, self.request, self.count = FileStorage(tmp_path / "data"), gang_request(tmp_path), 0

    def add(self, *causes: Cause, verdict: str | None, committed_step: int = -1, exited: bool = True) -> None:
        attempt = LAYOUT.attempt("", self.count)
        incidents = tuple(
            Incident(
                epoch=0, at=0.0, cause=cause, rank=0, step=9, committed_step=committed_step, exit_status=1, evidence=(), decision="restart", reason=""
            )
            for cause in causes
        )
        self.storage.create_exclusive(attempt.spec, canonical_json(self.request.model_copy(update={"attempt": self.count})))
        if exited:
            record = ExitRecord(key="k", exit_code=ExitCode.INTERRUPTED, cause=Cause.NODE, message="", epoch=0, incidents=incidents, ended_at=0.0)
            self.storage.create_exclusive(attempt.exit, canonical_json(record))
        else:
            for number, incident in enumerate(incidents):
                self.storage.create_exclusive(attempt.incident(number), canonical_json(incident))
        if verdict is not None:
            self.storage.create_exclusive(
                attempt.verdict, canonical_json(AttemptVerdict.model_validate({"decision": verdict, "reason": "", "at": 0.0}))
            )
        self.count += 1

    def counted(self) -> tuple[list[Cause], int]:
        history = counted_history(self.storage, LAYOUT, spec=self.request.model_copy(update={"attempt": self.count}))
        return [incident.cause for incident in history.incidents], history.baseline


def test_incidents_of_restarted_attempts_count(tmp_path: Path) -> None:
    history = History(tmp_path)
    assert history.counted() == ([], -1)
    history.add(Cause.KILLED, Cause.NODE, verdict="restart")
    history.add(Cause.USER_CODE, verdict="restart", exited=False)
    assert history.counted() == ([Cause.KILLED, Cause.NODE, Cause.USER_CODE], -1)


def test_a_stop_closes_the_account(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.add(Cause.USER_CODE, Cause.USER_CODE, verdict="stop", committed_step=40)
    history.add(Cause.KILLED, verdict="restart", committed_step=50)
    assert history.counted() == ([Cause.KILLED], 40)


def test_cancelling_costs_nothing(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.add(Cause.CANCELLED, verdict=None)
    assert history.counted() == ([], -1)
