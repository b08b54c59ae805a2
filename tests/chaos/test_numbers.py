"""Numbers that cannot be right (rows 33 and 34 of the fault matrix), and memory that runs out (row 8), with the real engine.

What changes the result happens only where the recipe asks for it, is recorded as an act before anything follows, and the same acts lead to
the same result, whatever dies in between.
"""

import math
import re

import pytest

from cluster.acts import read_acts
from cluster.attempt import read_notices
from schemas.act import ActKind
from schemas.attempt import Cause
from schemas.checkpoint import BatchWindow, TrainingState
from schemas.errors import OutOfMemoryError, PolicyStopError
from schemas.exit_code import ExitCode
from schemas.progress import NoticeKind
from tests.chaos.conftest import MakeTraining
from tests.chaos.injector import Faults, Point
from tests.chaos.live_training import LiveTraining, tiny_config

pytestmark = pytest.mark.slow

LAST = 40
SKIP = {"restart__on_bad_numbers": "skip"}
REWIND = {"restart__on_bad_numbers": "rewind", "restart__rewind_commits": 2}


def acts(training: LiveTraining) -> list[ActKind]:
    return [act.kind for act in read_acts(training.storage, training.layout)]


def state(training: LiveTraining) -> TrainingState:
    """The state that the newest commit holds."""
    folder = max((training.artifact_dir / "checkpoints").iterdir(), key=lambda path: path.name)
    return TrainingState.model_validate_json((folder / "state.json").read_bytes())


@pytest.mark.parametrize("fault", ["nan", pytest.param("bad_gradient", marks=pytest.mark.exhaustive)])
def test_bad_numbers_stop_before_anything_of_them_is_committed(make_training: MakeTraining, fault: str) -> None:
    training = make_training()
    error = training.error(getattr(Faults(), fault)(rank=1, at_step=8))
    assert isinstance(error, PolicyStopError)
    assert "update 8: the " in str(error)
    assert "is not finite" in str(error)
    assert "restart.on_bad_numbers" in str(error)
    record = training.exit_record()
    assert (record.exit_code, record.cause) == (ExitCode.POLICY, Cause.NUMERIC)
    (incident,) = training.incidents()
    assert (incident.cause, incident.step, incident.decision) == (Cause.NUMERIC, 8, "stop")
    assert training.commits() == [5]
    assert acts(training) == []


@pytest.mark.parametrize("fault", ["nan", pytest.param("bad_gradient", marks=pytest.mark.exhaustive)])
def test_a_skipped_update_is_skipped_for_ever(make_training: MakeTraining, fault: str, calm_hash: str) -> None:
    """Also by a start that finds nothing wrong with it any more: the numbers were bad but once."""
    calm, killed = make_training("calm", **SKIP), make_training("killed", **SKIP)
    bad = getattr(Faults(), fault)(rank=1, at_step=13)
    draft = calm.run(bad)
    assert draft.content_hash != calm_hash
    assert state(calm).skipped_steps == (13,)
    assert state(calm).optimizer_step == LAST - 1
    assert calm.incidents() == []
    assert acts(calm) == [ActKind.SKIPPED_UPDATE]
    assert draft.summary["acts"][0].startswith("skipped update at step 13: the ")
    notices = [notice for notice in read_notices(calm.storage, calm.layout.attempt("", 0)) if notice.kind is NoticeKind.BATCH_SKIPPED]
    assert [notice.step for notice in notices] == [13]
    assert [point.step for point in calm.points() if "gradient_norm" not in point.values] == [14]
    assert killed.run(bad.kill(rank=0, at_step=14)).content_hash == draft.content_hash
    assert killed.first_steps()[1] <= 13, "the bad update was made again"
    assert acts(killed) == [ActKind.SKIPPED_UPDATE]


def test_a_jump_of_the_loss_is_told_from_noise(make_training: MakeTraining) -> None:
    training = make_training(**SKIP, restart__loss_spike_factor=5.0)
    training.run(Faults().spike(rank=0, at_step=30))
    assert state(training).skipped_steps == (30,)
    (act,) = read_acts(training.storage, training.layout)
    assert "more than 5 times the usual" in act.detail


def test_weights_that_are_spoiled_are_not_skipped_for_ever(make_training: MakeTraining) -> None:
    training = make_training(**SKIP)
    error = training.error(Faults().nan(rank=0, at_step=-1, times=0))
    assert isinstance(error, PolicyStopError)
    assert "the weights are spoiled" in str(error)
    assert training.exit_record().exit_code is ExitCode.POLICY
    assert acts(training) == [ActKind.SKIPPED_UPDATE] * 5


def test_a_rewind_leaves_out_the_batches_since(make_training: MakeTraining, calm_hash: str) -> None:
    calm, killed = make_training("calm", **REWIND), make_training("killed", **REWIND)
    draft = calm.run(Faults().nan(rank=1, at_step=18))
    assert draft.content_hash != calm_hash
    (incident,) = calm.incidents()
    assert (incident.cause, incident.decision, incident.step, incident.back_to_step) == (Cause.NUMERIC, "rewind", 18, 10)
    assert acts(calm) == [ActKind.REWIND]
    assert state(calm).skipped_batches == (BatchWindow(first=10, stop=19),)
    assert state(calm).skipped_steps == ()
    assert state(calm).step == state(calm).optimizer_step == LAST, "as many updates as without"
    assert calm.first_steps() == {0: 1, 1: 11}
    faults = Faults().nan(rank=1, at_step=18).kill(rank=0, at_step=16)
    assert killed.run(faults).content_hash == draft.content_hash


@pytest.mark.exhaustive
def test_rewinds_that_bring_nothing_end(make_training: MakeTraining) -> None:
    training = make_training(restart__on_bad_numbers="rewind", restart__max_failures=9)
    error = training.error(Faults().nan(rank=1, at_step=18, times=0))
    assert isinstance(error, PolicyStopError)
    assert "max_attempts_without_progress" in str(error)
    assert [incident.decision for incident in training.incidents()] == ["rewind", "rewind", "rewind", "stop"]
    assert training.exit_record().cause is Cause.NUMERIC


@pytest.mark.parametrize("what", ["master", "parameter"])
def test_a_bit_that_flips_names_its_rank_and_costs_a_restart(make_training: MakeTraining, what: str, calm_hash: str) -> None:
    training = make_training(checkpoint__check_weights_every_steps=4)
    assert training.run(Faults().flip(rank=1, at_step=12, what=what)).content_hash == calm_hash
    (incident,) = training.incidents()
    assert (incident.cause, incident.rank, incident.decision) == (Cause.NUMERIC, 1, "restart")
    text = "\n".join(incident.evidence)
    assert "CorruptStateError: rank 1, after update 12: changed between the update and its use: " in text
    assert acts(training) == []


def test_a_flipped_parameter_is_not_committed(make_training: MakeTraining, calm_hash: str) -> None:
    """Between sampled updates the checkpoint's own check finds it. ZeRO 2 heals parameters at every update: flipped after the last."""
    training = make_training(checkpoint__check_weights_every_steps=None)
    assert training.run(Faults().flip(rank=0, at_step=19, what="parameter", point=Point.STEP)).content_hash == calm_hash
    (incident,) = training.incidents()
    assert (incident.cause, incident.decision) == (Cause.NUMERIC, "restart")
    assert re.search("is not cast.master weight.|differs between ranks", "\n".join(incident.evidence))


def test_out_of_memory_stops_unless_a_smaller_micro_batch_is_wanted(make_training: MakeTraining, calm: tuple[LiveTraining, str]) -> None:
    stopped = make_training("stopped")
    assert isinstance(stopped.error(Faults().oom(rank=0, at_step=6)), OutOfMemoryError)
    training = make_training("smaller", restart__on_out_of_memory="smaller_micro_batch")
    draft = training.run(Faults().oom(rank=0, at_step=6, times=1))
    (incident,) = training.incidents()
    assert (incident.cause, incident.decision) == (Cause.OUT_OF_MEMORY, "smaller micro-batch")
    (act,) = read_acts(training.storage, training.layout)
    assert (act.kind, act.micro_batch_size) == (ActKind.SMALLER_MICRO_BATCH, 1)
    assert "smaller micro-batch" in draft.summary["acts"][0]
    calm_training, calm_hash = calm
    assert draft.content_hash != calm_hash, "its last bits differ"
    last, calm_last = (of.points()[-1].values["loss"] for of in (training, calm_training))
    assert math.isclose(last, calm_last, rel_tol=1e-3), "and only they"


def test_another_number_of_ranks_is_recorded(make_training: MakeTraining) -> None:
    training = make_training(training__steps=10)
    training.run()
    (training.artifact_dir / "commits" / "step-00000010.json").unlink()
    draft = LiveTraining(training.folder, tiny_config(training__steps=10, cluster__ranks_per_node=1)).run()
    assert draft.summary["acts"] == ["resized at step 5: 2 → 1 ranks"]
