"""What `verify-resume` says, and what it refuses before it starts anything."""

from pathlib import Path
from typing import Any

import pytest

from flows import proving
from flows.proving import kills_screen, parse_sizes, prove, sizes_screen
from schemas.errors import ConfigError
from schemas.ledger import GoodputLedger, Spent
from schemas.recipe_config import Precision
from tasks.elastic_proof import ElasticProof
from tasks.elastic_training import Transition
from tasks.resume_proof import ProvenKill, ResumeProof

IDS, WEIGHTS = "0123456789abcdef" * 2, "fedcba9876543210" * 2
LEDGER = GoodputLedger(
    since=0.0,
    until=100.0,
    complete=True,
    wall_s=100.0,
    away_s=0.0,
    seconds={**dict.fromkeys(Spent, 0.0), Spent.USEFUL: 90.0, Spent.RECOVERY: 10.0},
    goodput=0.9,
    steps=100,
    steps_redone=7,
    attempts=1,
    restarts=1,
    mtbf_s=1800.0,
)
TRANSITION = Transition(
    was=2,
    now=1,
    killed_rank=1,
    killed_at=57,
    resumed_from=50,
    committed_state="9143d7dd511d4900",
    loaded_state="9143d7dd511d4900",
    loss_before=5.028749,
    loss_after=5.028751,
)


def elastic(**changes: Any) -> ElasticProof:
    fields: dict[str, Any] = {"world_sizes": (2, 1), "steps": 100, "micro_batch_size": 2, "precision": Precision.BF16, "has_dropout": False}
    fields |= {"transitions": (TRANSITION,), "prescribed_ids": IDS, "calm_ids": IDS, "resized_ids": IDS, "validation_loss": 2.5}
    return ElasticProof(**fields | {"calm_validation_losses": (2.5003, 2.51, 2.49), "ledger": LEDGER, "scratch": ""} | changes)


def test_the_screen_of_kills_shows_both_hashes_and_where_the_time_went() -> None:
    proof = ResumeProof(
        steps=100,
        world_size=2,
        calm_hash=WEIGHTS,
        disturbed_hash=WEIGHTS,
        prescribed_ids=IDS,
        calm_ids=IDS,
        disturbed_ids=IDS,
        calm_s=90.0,
        disturbed_s=100.0,
        kills=(ProvenKill(rank=1, step=57, resumed_from=50, recovered_after_s=0.6),),
        ledger=LEDGER,
        calm_ledger=LEDGER,
        scratch="",
    )
    assert proof.equal
    assert kills_screen(proof) == [
        "  rank 1 killed at step 57, running again after 0.6 s, 7 steps redone",
        "  100 steps on 2 ranks: 1 min 30 s undisturbed, 1 min 40 s with kills",
        "  undisturbed  90.0 % of 1 min 40 s went into useful steps; recovery 10.0 %; 1 restart, 7 steps redone",
        "  killed       90.0 % of 1 min 40 s went into useful steps; recovery 10.0 %; 1 restart, 7 steps redone",
        "  weights",
        f"    undisturbed  {WEIGHTS}",
        f"    killed       {WEIGHTS}",
        "  consumed ids, of all steps",
        f"    prescribed   {IDS}",
        f"    undisturbed  {IDS}",
        f"    killed       {IDS}",
    ]
    assert not proof.model_copy(update={"disturbed_ids": WEIGHTS}).equal
    assert not proof.model_copy(update={"prescribed_ids": WEIGHTS}).equal
    assert not proof.model_copy(update={"disturbed_hash": IDS}).equal


def test_the_screen_of_sizes_shows_state_losses_and_sequences() -> None:
    assert sizes_screen(elastic()) == [
        "  2 → 1 rank: rank 1 killed at step 57, goes on from step 50",
        "    state        9143d7dd511d4900 committed, 9143d7dd511d4900 loaded",
        "    first loss   5.028749 before, 5.028751 after, 4.0e-07 apart; 0.001 is allowed",
        "  100 steps, micro-batch 2, bf16",
        "  resized      90.0 % of 1 min 40 s went into useful steps; recovery 10.0 %; 1 restart, 7 steps redone",
        "  consumed ids, of all steps",
        f"    prescribed   {IDS}",
        f"    undisturbed  {IDS}",
        f"    resized      {IDS}",
        "  validation loss 2.5000, 0.0003 from the undisturbed one of the same seed",
        "    undisturbed, by seed: 2.5003, 2.5100, 2.4900; they are 0.0200 apart",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"has_dropout": True}, "    first loss   5.028749 before, 5.028751 after, 4.0e-07 apart; not judged: the model has dropout"),
        ({"transitions": (TRANSITION.model_copy(update={"loss_before": None}),)}, "    first loss   not measured on both sides"),
        ({"transitions": (TRANSITION.model_copy(update={"loaded_state": ""}),)}, "    state        9143d7dd511d4900 committed, none loaded"),
    ],
)
def test_what_is_missing_or_not_judged_is_said(changes: dict[str, Any], line: str) -> None:
    assert line in sizes_screen(elastic(**changes))


def test_without_a_validation_split_nothing_is_said_of_it() -> None:
    assert not any("validation" in line for line in sizes_screen(elastic(validation_loss=None, calm_validation_losses=())))


def test_sizes_are_numbers_with_commas() -> None:
    assert parse_sizes("2, 1,3") == (2, 1, 3)


@pytest.mark.parametrize("text", ["", "2,", "2;1", "two", "2,0", "-1,2", "2,1.5"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="numbers of ranks"):
        parse_sizes(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kills": 3, "world": "2,1"}, "has no effect with --world"),
        ({"world": "2,1,3,2"}, "3 ranks; feasible: 1, 2, 4, 8"),
        ({"world": "2,2"}, "each another than the one before"),
        ({"world": "2,1,2,1,2"}, "too few for 5 segments"),
    ],
)
def test_what_cannot_be_proven_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, message: str
) -> None:
    monkeypatch.setattr(proving, "_origin", lambda loaded: pytest.fail("something was started"))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("text")
    (tmp_path / "r.yaml").write_text(
        "name: tiny\ncorpus: {sources: [text]}\nmodel: {config: {model_type: llama}}\n"
        "training: {steps: 30, global_batch_size: 8, micro_batch_size: 2, schedule: {warmup_steps: 2}}\ncluster: {ranks_per_node: 2}\n"
    )
    given: dict[str, Any] = {"kills": None, "world": None, "seed": 0, "keep": False, "as_json": False}
    with pytest.raises(ConfigError, match=message):
        prove(tmp_path / "r.yaml", (), **given | options)
    assert not (tmp_path / ".headrace").exists()
