"""Storage that is damaged, full, refused, slow or stale, with the real engine (rows 17 and 19-24 of the fault matrix).

Nothing that storage does to a checkpoint may end a training that can go on, and nothing damaged may be trained on.
"""

import os
import shlex
import stat
import sys
from pathlib import Path

import pytest

from cluster.attempt import read_notices
from schemas.attempt import Cause
from schemas.errors import VerificationError
from schemas.exit_code import ExitCode
from schemas.progress import NoticeKind
from tests.chaos.conftest import MakeTraining
from tests.chaos.faulty_rank import damage
from tests.chaos.injector import Faults
from tests.chaos.live_training import LiveTraining

pytestmark = pytest.mark.slow

KEEP_ALL = {"checkpoint__keep_last": 50}


def notices(training: LiveTraining, kind: NoticeKind) -> list[int]:
    """Steps of the notices of a kind, over all attempts."""
    found = [notice for number in training.attempts for notice in read_notices(training.storage, training.layout.attempt("", number))]
    return sorted({notice.step for notice in found if notice.kind is kind})


def test_a_damaged_checkpoint_costs_one_interval_whatever_the_damage(make_training: MakeTraining, calm_hash: str) -> None:
    """Rows 17 and 19: each checkpoint is damaged right after its commit, and a rank killed. What verifies is found by looking, not by a pointer."""
    training = make_training(training__steps=40)
    faults = (
        Faults()
        .corrupt(file="commit", damage="truncate", of_step=10, at_step=12)
        .corrupt(file="rank-0000.bin", damage="flip", of_step=15, at_step=17)
        .corrupt(file="rank-0001.bin", damage="empty", of_step=20, at_step=22)
        .corrupt(file="state.json", damage="remove", of_step=25, at_step=27)
        .corrupt(file="rank-0001.json", damage="truncate", of_step=30, at_step=32)
        .corrupt(file="commit", damage="remove", of_step=35, at_step=37)
    )
    assert training.run(faults).content_hash == calm_hash
    assert training.exit_record().exit_code is ExitCode.DONE
    assert [(one.cause, one.rank, one.decision) for one in training.incidents()] == [(Cause.KILLED, 0, "restart")] * 6
    assert training.first_steps() == {0: 1, 1: 6, 2: 11, 3: 16, 4: 21, 5: 26, 6: 31}, "one checkpoint back, each time"
    marked = {marker["step"]: " ".join(marker["findings"]) for marker in training.quarantined()}
    assert sorted(marked) == [10, 15, 20, 25, 30], "a commit that is simply gone leaves nothing to mark"
    for step, name in {15: "rank-0000.bin: wrong content", 20: "rank-0001.bin: wrong size", 25: "state.json: missing", 30: "rank-0001.json"}.items():
        assert name in marked[step]
    assert "the checkpoint of step 10 is damaged" in training.log()


def test_when_nothing_verifies_it_stops_and_never_begins_again(make_training: MakeTraining, calm_hash: str) -> None:
    """Row 17: what is left is not touched, so that it can be restored; then it goes on."""
    training = make_training()
    kept: dict[Path, bytes] = {}

    def damage_all() -> None:
        for data in training.artifact_dir.glob("checkpoints/*/rank-0000.bin"):
            kept[data] = data.read_bytes()
            damage(data, "flip")
        training.zygote().children()[0].kill()

    with training.meanwhile({0: damage_all}):
        error = training.error(Faults().hold(rank=0, at_step=12))
    assert isinstance(error, VerificationError)
    assert "no checkpoint" in str(error)
    assert training.exit_record().exit_code is ExitCode.VERIFICATION
    assert [incident.decision for incident in training.incidents()] == ["restart", "stop"]
    assert len(kept) == 2
    assert training.commits() == [5, 10], "nothing is withdrawn when nothing else is left"
    for path, data in kept.items():
        path.write_bytes(data)
    assert training.run().content_hash == calm_hash
    assert training.first_steps()[2] == 11


def test_a_checkpoint_that_cannot_be_written_is_given_up_and_training_goes_on(make_training: MakeTraining, calm_hash: str) -> None:
    """Rows 20 and 21: no space, a kernel's limit, a failed fsync of data, of the folder, of the commit itself; a writer that is killed."""
    training = make_training(**KEEP_ALL)
    faults = (
        Faults()
        .enospc(rank=1, path="step-00000005")
        .files(rank=0, path="step-00000010.e000000/rank-0000.bin", call="open", damage="limit")
        .files(rank=1, path="step-00000015.e000000/rank-0001.bin", call="fsync", damage="EIO")
        .files(rank=0, path="commits/.tmp-step-00000020", call="fsync", damage="EIO")
        .files(rank=1, path="step-00000025.e000000/rank-0001.bin", call="write", damage="kill")
    )
    assert training.run(faults).content_hash == calm_hash
    assert training.exit_record().exit_code is ExitCode.DONE
    assert training.incidents() == []
    assert len(training.struck.times()) == 5
    assert training.commits() == [30, 35, 40]
    folders = sorted(path.name for path in (training.artifact_dir / "checkpoints").iterdir())
    assert folders == [f"step-{step:08d}.e000000" for step in (30, 35, 40)], "what there was of the others is removed"
    assert notices(training, NoticeKind.CHECKPOINT_FAILED) == [5, 10, 15, 20, 25]
    reasons = {5: "No space left", 10: "File too large", 15: "Input/output error", 20: "Input/output error", 25: "killed by signal 9"}
    lines = training.log().splitlines()
    assert [step for step, reason in reasons.items() if not any(f"step {step} " in line and reason in line for line in lines)] == []
    assert training.points()[-1].values["checkpoint_failures"] == 5


def test_lost_permission_is_survived_and_named(make_training: MakeTraining, calm_hash: str, tmp_path: Path) -> None:
    """Row 22: the folder becomes read-only, for a while. Root, whom permissions do not bind, gives up that privilege first."""
    python = tmp_path / "python"
    drop = "setpriv --bounding-set=-dac_override,-dac_read_search,-fowner " if os.geteuid() == 0 else ""
    python.write_text(f'#!/bin/sh\nexec {drop}{shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    training = make_training(cluster__python=str(python), **KEEP_ALL)
    checkpoints = training.artifact_dir / "checkpoints"
    acts = {0: lambda: checkpoints.chmod(stat.S_IRUSR | stat.S_IXUSR), 1: lambda: checkpoints.chmod(stat.S_IRWXU)}
    with training.meanwhile(acts):
        draft = training.run(Faults().hold(rank=0, at_step=7).hold(rank=0, at_step=22))
    assert draft.content_hash == calm_hash
    assert training.incidents() == []
    assert training.commits() == [5, 25, 30, 35, 40]
    assert notices(training, NoticeKind.CHECKPOINT_FAILED) == [10, 15, 20]
    assert f"Permission denied: '{checkpoints}/step-00000010.e000000'" in training.log()


def test_a_stalled_file_system_skips_checkpoints_and_holds_up_no_step(make_training: MakeTraining, calm_hash: str) -> None:
    """Row 23."""
    training = make_training(**KEEP_ALL)
    training.paced = False
    stalled_s = 4.0  # steps get done meanwhile on a busy machine, too
    faults = Faults().slow_steps(seconds=0.05).hold(rank=0, at_step=7).slow_fs(rank=1, path="checkpoints/step-", seconds=stalled_s)
    with training.meanwhile({2: lambda: training.struck.let_go(1)}):  # the writer starts when it gets a processor: steps wait for its first write
        assert training.run(faults).content_hash == calm_hash
    assert training.incidents() == []
    (stalled_at,) = training.struck.times(2)
    meanwhile = [point.step for point in training.points() if stalled_at < point.at < stalled_at + stalled_s]
    assert len(meanwhile) >= 3, "steps were made while the write hung"
    skipped = notices(training, NoticeKind.CHECKPOINT_SKIPPED)
    assert skipped
    assert set(skipped).isdisjoint(training.commits())
    assert training.points()[-1].values["checkpoint_skipped"] >= len(skipped), "one word for each write that was in the way"


def test_stale_handles_and_late_listings_are_asked_again(make_training: MakeTraining, calm_hash: str) -> None:
    """Row 24: after a kill a rank gets an old listing of the commits; after another a stale handle for the newest."""
    training = make_training()
    faults = (
        Faults()
        .kill(rank=1, at_step=13)
        .files(rank=0, path="/commits", call="list", damage="hide", once_struck=0)
        .kill(rank=1, at_step=28)
        .files(rank=0, path="commits/step-00000025", call="read", damage="ESTALE", once_struck=2)
    )
    assert training.run(faults).content_hash == calm_hash
    assert training.exit_record().exit_code is ExitCode.DONE
    causes = [incident.cause for incident in training.incidents()]
    assert causes == [Cause.KILLED, Cause.KILLED, Cause.STORAGE]
    assert "Stale file handle" in "\n".join(training.incidents()[2].evidence)
    first = training.first_steps()
    assert first[1] == 6, "what is not listed is made again"
    assert first[3] == 26
