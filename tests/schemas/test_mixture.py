"""Mixture weights: rounded once, exactly known, and refused where they cannot be given."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import RunConfig
from schemas.diagnosis import diagnose
from schemas.errors import ConfigError
from schemas.mixture import SLOTS, MixtureConfig, check_mixture, source_shares
from schemas.sizing import training_size
from schemas.stage import Stage

BASE: dict[str, Any] = {
    "name": "x",
    "corpus": {"sources": [{"path": "/w", "name": "web"}, {"path": "/c", "name": "code"}, "/rest"]},
    "tokenization": {"sequence_length": 128, "by_source": True},
    "model": {"factory": "package:make"},
    "training": {"steps": 1000, "global_batch_size": 32, "micro_batch_size": 4},
}
WEIGHTS = {"web": 3, "code": 1, "source-2": 0}


def recipe(mixture: Any, **training: Any) -> dict[str, Any]:
    return BASE | {"training": BASE["training"] | {"mixture": mixture} | training}


@given(weights=st.dictionaries(st.text("abc", min_size=1, max_size=4), st.floats(1e-6, 1e6), min_size=1, max_size=40))
def test_slots_are_the_nearest_whole_numbers_to_the_weights(weights: dict[str, float]) -> None:
    quotas = MixtureConfig(weights=weights).quotas(dict.fromkeys(weights, 5))
    assert quotas.keys() == weights.keys()
    assert sum(quotas.values()) == SLOTS
    assert min(quotas.values()) >= 1
    total, raised = sum(weights.values()), sum(weight / sum(weights.values()) * SLOTS < 1 for weight in weights.values())
    assert all(abs(quotas[name] - weight / total * SLOTS) < 1.001 + raised for name, weight in weights.items())


def test_only_ratios_of_weights_matter_and_order_does_not() -> None:
    sequences = {"a": 3, "b": 4, "c": 5}
    one = MixtureConfig(weights={"a": 1, "b": 2, "c": 4}).quotas(sequences)
    assert one == MixtureConfig(weights={"c": 40, "b": 20, "a": 10}).quotas(sequences)
    assert one == {"a": 9362, "b": 18725, "c": 37449}


def test_epochs_weigh_by_length() -> None:
    mixture = MixtureConfig(epochs={"web": 1, "code": 2.5, "rest": 0})
    sequences = {"web": 500, "code": 200, "rest": 77}
    assert mixture.quotas(sequences) == {"web": SLOTS // 2, "code": SLOTS // 2}
    assert mixture.epoch_sequences(sequences) == 1000
    assert MixtureConfig(weights={"web": 1, "code": 9, "rest": 0}).epoch_sequences(sequences) == 700


def test_the_plan_knows_what_training_sees_of_each_source() -> None:
    config = RunConfig.model_validate(recipe({"weights": WEIGHTS}))
    size = training_size(config, train_sequences=10_000, source_sequences={"web": 6_000, "code": 1_000, "source-2": 3_000})
    assert [(share.source, share.share, share.epochs) for share in size.sources] == [("web", 0.75, 4.0), ("code", 0.25, 8.0)]
    assert size.epochs == 32_000 / 7_000
    web, code = size.sources
    assert web.warning == ""
    assert "source code will be seen 8.0 times" in code.warning
    early = training_size(config)
    assert [(share.share, share.sequences, share.epochs) for share in early.sources] == [(0.75, None, None), (0.25, None, None)]


def test_epochs_of_a_mixture_are_epochs_of_its_sources() -> None:
    config = RunConfig.model_validate(recipe({"epochs": {"web": 1, "code": 2, "source-2": 0}}, steps=None, epochs=3.0))
    assert training_size(config).total_steps is None
    assert [share.slots for share in training_size(config).sources] == [None, None]
    size = training_size(config, train_sequences=10_000, source_sequences={"web": 6_400, "code": 1_600, "source-2": 2_000})
    assert size.total_steps == 3 * 9_600 / 32
    assert [round(share.epochs or 0, 2) for share in size.sources] == [3.0, 6.0]


def test_all_that_is_wrong_with_names_is_said_at_once() -> None:
    config, problems = diagnose(recipe({"weights": {"web": 1, "coed": 2}}) | {"tokenization": {}})
    assert config is None
    said = {str(problem.message): problem.nearest for problem in problems}
    assert said == {
        "training.mixture.weights names 'coed', which is no source; corpus.sources has web, code, source-2": "code",
        "training.mixture.weights does not name the source 'code'": "code: 0 leaves it out",
        "training.mixture.weights does not name the source 'source-2'": "source-2: 0 leaves it out",
        "tokenization.by_source (False) must be on with training.mixture: sources need shards of their own": "true",
    }


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({}, "exactly one of weights, epochs; found none"),
        ({"weights": WEIGHTS, "epochs": WEIGHTS}, "found weights, epochs"),
        ({"weights": dict.fromkeys(WEIGHTS, 0)}, "weights leaves every source out"),
        ({"weights": WEIGHTS | {"web": -1}}, "must be at least 0"),
        ({"weights": WEIGHTS | {"web": float("inf")}}, "must be a finite number"),
    ],
)
def test_weights_that_mean_nothing_are_refused(mixture: Any, message: str) -> None:
    config, problems = diagnose(recipe(mixture))
    assert config is None
    assert any(message in str(problem.message) for problem in problems), problems


def test_shards_that_cannot_give_it_are_refused_with_every_name() -> None:
    mixture = MixtureConfig(weights={"web": 1, "code": 2, "rest": 0})
    with pytest.raises(ConfigError) as error:
        check_mixture(mixture, {"web": 0})
    assert [problem.key for problem in error.value.problems] == ["training.mixture.weights.web", "training.mixture.weights.code"]
    with pytest.raises(ConfigError, match=r"tokenization\.by_source"):
        check_mixture(mixture, {"": 100})
    check_mixture(mixture, {"web": 1, "code": 1})


def test_a_mixture_is_part_of_what_a_training_is_and_none_changes_nothing() -> None:
    plain, mixed = (RunConfig.model_validate(data).identity(Stage.TRAIN)["training"] for data in (BASE, recipe({"weights": WEIGHTS})))
    assert "mixture" not in plain
    assert mixed["mixture"]["weights"] == WEIGHTS


def test_sources_that_are_not_counted_have_no_epochs() -> None:
    (share,) = source_shares(MixtureConfig(weights={"a": 1}), sequences=None, used=100)
    assert (share.slots, share.epochs, share.warning) == (SLOTS, None, "")
