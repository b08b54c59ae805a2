"""What an artifact is, and where it is made, are separate: no execution field moves a fingerprint."""

from typing import Any

import pytest

from schemas.canonical import canonical_json, hash_of, root_hash
from schemas.cluster_config import ClusterKind
from schemas.config import EXECUTION_SECTIONS, RECIPE_SECTIONS, RunConfig
from schemas.deepspeed_options import NUMERIC_OPTIONS
from schemas.stage import Stage, stages_of
from schemas.tokens_config import TokenizationConfig

BASE: dict[str, Any] = {
    "name": "demo",
    "corpus": {"sources": ["/text"]},
    "model": {"config": {"model_type": "llama", "hidden_size": 64}},
    "training": {"steps": 100, "global_batch_size": 8, "micro_batch_size": 4, "schedule": {"warmup_steps": 10}},
}

EXECUTION_CHANGES: dict[str, Any] = {
    "storage": {"root": "/elsewhere"},
    "state": "/other/state",
    "deepspeed": {"zero_optimization": {"overlap_comm": False}},
    "cluster": {"ranks_per_node": 2, "time_limit": "2h", "price_per_gpu_hour": 2.5, "stages": {"train": {"nodes": 1}}},
    "budget": {"gpu_hours": 3.5},
    "checkpoint": {"every_steps": 7, "keep_last": 1, "keep_every_steps": 3},
    "restart": {"max_failures": 0, "max_interruptions": 1, "max_attempts_without_progress": 9, "backoff_s": 1.0},
    "tracking": {"mlflow_uri": "http://127.0.0.1:1", "validate_every_steps": 3, "sample_prompt": "x"},
}


def fingerprints(**changes: Any) -> dict[Stage, str]:
    config = RunConfig.model_validate(BASE | changes)
    return {stage: hash_of(config.identity(stage)) for stage in config.stages}


def test_every_section_is_either_recipe_or_execution() -> None:
    recipe = {section for sections in RECIPE_SECTIONS.values() for section in sections}
    assert recipe | set(EXECUTION_SECTIONS) | {"name"} == set(RunConfig.model_fields)
    assert not recipe & set(EXECUTION_SECTIONS)


@pytest.mark.parametrize("section", EXECUTION_SECTIONS)
def test_execution_never_moves_a_fingerprint(section: str) -> None:
    assert fingerprints(**{section: EXECUTION_CHANGES[section]}) == fingerprints()


@pytest.mark.parametrize("kind", [ClusterKind.SLURM, ClusterKind.KUBERNETES])
def test_the_kind_of_cluster_never_moves_a_fingerprint(kind: ClusterKind) -> None:
    there = {"kind": kind, "nodes": 2, **({"image": "headrace:1"} if kind is ClusterKind.KUBERNETES else {})}
    assert fingerprints(cluster=there) == fingerprints()


def test_where_the_text_lies_is_not_what_it_is() -> None:
    assert fingerprints(corpus={"sources": ["/moved/text"]}) == fingerprints()


def test_zero_stage_is_a_matter_of_memory() -> None:
    assert fingerprints(training=BASE["training"] | {"zero_stage": 3}) == fingerprints()


@pytest.mark.parametrize("option", sorted(NUMERIC_OPTIONS))
def test_a_deepspeed_key_that_changes_numbers_is_a_different_training(option: str) -> None:
    parent, _, name = option.rpartition(".")
    precision = {"training": BASE["training"] | {"precision": "fp16" if parent == "fp16" else "bf16"}}
    before = fingerprints(**precision)
    moved, unset = (fingerprints(**precision, deepspeed={parent: {name: value}} if parent else {name: value}) for value in ("changed", "auto"))
    assert {stage for stage in stages_of(prepared=False) if before[stage] != moved[stage]} == {Stage.TRAIN}
    assert unset == before, "auto sets nothing"


def test_the_part_of_another_precision_has_no_effect() -> None:
    assert fingerprints(deepspeed={"fp16": {"enabled": "auto", "initial_scale_power": 16, "hysteresis": 2}}) == fingerprints()


def test_trainings_that_differ_in_numbers_share_no_state() -> None:
    section = {"data_types": {"grad_accum_dtype": "bf16"}}
    assert RunConfig.model_validate(BASE | {"deepspeed": section}).trajectory() != RunConfig.model_validate(BASE).trajectory()


def test_where_a_pretrained_model_lies_is_not_what_it_is() -> None:
    here, there = (fingerprints(model={"pretrained": path}) for path in ("/models/a", "/models/b"))
    assert here == there
    recipe = RunConfig.model_validate(BASE | {"model": {"pretrained": "/models/a"}}).identity(Stage.TRAIN)
    assert recipe["model"]["pretrained"] is True, "its content is an input"


def test_how_attention_is_computed_is_part_of_the_model() -> None:
    eager = {"config": BASE["model"]["config"] | {"attn_implementation": "eager"}}
    assert fingerprints(model=eager)[Stage.TRAIN] != fingerprints()[Stage.TRAIN]


@pytest.mark.parametrize(
    ("section", "changes", "stage"),
    [
        ("corpus", {"sources": ["/text"], "rules": {"max_quarantined_share": 0.2}}, Stage.VALIDATE),
        ("corpus", {"sources": ["/text"], "rules": {"min_documents": 2}}, Stage.VALIDATE),
        ("corpus", {"sources": ["/text"], "rules": {"max_record_drift": 0.5}}, Stage.VALIDATE),
        ("tokenizer", {"min_bytes_per_token": 1.0}, Stage.TOKENIZER),
        ("tokenizer", {"max_tokens_per_word": 9.0}, Stage.TOKENIZER),
        ("tokenization", {"engine": "huggingface"}, Stage.TOKENIZE),
        ("tokenization", {"shadow_check_documents": 0}, Stage.TOKENIZE),
    ],
)
def test_what_passed_a_loose_gate_is_not_found_under_a_tight_one(section: str, changes: dict[str, Any], stage: Stage) -> None:
    before, after = fingerprints(), fingerprints(**{section: changes})
    assert stage in {other for other in before if before[other] != after[other]}


@pytest.mark.parametrize(("key", "value"), [("packing", "best_fit"), ("by_source", True), ("boundaries", True)])
def test_a_key_that_came_later_is_identity_only_where_it_is_used(key: str, value: Any) -> None:
    before = fingerprints()
    assert fingerprints(tokenization={key: TokenizationConfig.model_fields[key].default}) == before
    after = fingerprints(tokenization={key: value})
    assert {stage for stage in before if before[stage] != after[stage]} == {Stage.TOKENIZE}
    assert key not in RunConfig.model_validate(BASE).identity(Stage.TOKENIZE)["tokenization"]


def test_which_tokens_attend_to_which_is_part_of_a_training() -> None:
    boundaries = {"tokenization": {"boundaries": True}}
    masked = fingerprints(**boundaries, training=BASE["training"] | {"document_attention": "masked"})
    full = fingerprints(**boundaries, training=BASE["training"] | {"document_attention": "full"})
    assert {stage for stage in full if full[stage] != masked[stage]} == {Stage.TRAIN}
    assert full[Stage.TRAIN] == fingerprints(**boundaries)[Stage.TRAIN]


@pytest.mark.parametrize(("key", "value"), [("seed", 5), ("steps", 101), ("micro_batch_size", 2), ("precision", "fp32"), ("gradient_clipping", 0.5)])
def test_the_recipe_moves_the_fingerprint_of_its_own_stage_only(key: str, value: Any) -> None:
    before, after = fingerprints(), fingerprints(training=BASE["training"] | {key: value})
    assert {stage for stage in stages_of(prepared=False) if before[stage] != after[stage]} == {Stage.TRAIN}


@pytest.mark.parametrize(("kind", "equal"), [("constant", True), ("wsd", True), ("cosine", False), ("linear", False)])
def test_how_long_is_not_what_where_the_schedule_does_not_depend_on_it(kind: str, equal: bool) -> None:
    schedule = {"kind": kind, "warmup_steps": 1} | ({"decay_steps": 5} if kind == "wsd" else {})
    short, long = (
        RunConfig.model_validate(BASE | {"training": BASE["training"] | {"steps": steps, "schedule": schedule}}).trajectory() for steps in (100, 200)
    )
    assert (short == long) is equal


def test_canonical_json_is_stable_and_refuses_what_is_not() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None, True, "é"]}) == '{"a":[1.5,null,true,"é"],"b":1}'.encode()
    for value in (float("nan"), {1, 2}, object(), lambda: None):
        with pytest.raises(TypeError, match=r"\$\.x"):
            canonical_json({"x": value})


def test_root_hash_does_not_depend_on_order() -> None:
    files = [("a", 1, "x"), ("b", 2, "y")]
    assert root_hash(files) == root_hash(reversed(files))
    assert root_hash(files) != root_hash([("a", 1, "x"), ("b", 2, "z")])


def test_feasible_world_sizes_are_the_divisors() -> None:
    section = {"steps": 1, "global_batch_size": 96, "micro_batch_size": 8, "schedule": {"warmup_steps": 0}}
    training = RunConfig.model_validate(BASE | {"training": section}).training
    assert training.feasible_world_sizes == (1, 2, 3, 4, 6, 12)
    assert training.world_size_for(5) == 4
    assert training.gradient_accumulation_steps(4) == 3


PREPARED: dict[str, Any] = {"sources": ["/text"], "preparation": {"normalization": "nfc", "duplicates": {"near": True}}}


def test_a_recipe_without_preparation_has_no_such_stage_and_means_what_it_meant() -> None:
    plain, prepared = RunConfig.model_validate(BASE), RunConfig.model_validate(BASE | {"corpus": PREPARED})
    assert Stage.PREPARE not in plain.stages
    assert (plain.corpus_stage, prepared.corpus_stage) == (Stage.VALIDATE, Stage.PREPARE)
    assert prepared.stages == tuple(Stage)
    assert plain.inputs_of(Stage.TOKENIZE) == (Stage.VALIDATE, Stage.TOKENIZER)
    assert prepared.inputs_of(Stage.TOKENIZE) == (Stage.PREPARE, Stage.TOKENIZER)
    assert plain.identity(Stage.VALIDATE)["corpus"].keys() == {"sources", "rules", "splits", "group_bytes"}


def test_editing_the_preparation_leaves_all_stages_but_its_own() -> None:
    before, after = fingerprints(corpus=PREPARED), fingerprints(corpus=PREPARED | {"preparation": {"normalization": "nfkc"}})
    assert {stage for stage in before if before[stage] != after[stage]} == {Stage.PREPARE}
    assert {stage: digest for stage, digest in before.items() if stage is not Stage.PREPARE} == fingerprints()


@pytest.mark.parametrize(
    "idle",
    [
        {"quality": {"gopher_limits": {"min_words": 7}}},
        {"language": {"min_score": 0.1}},
        {"decontamination": {"max_shared": 3, "files": ["/questions.txt"]}},
        {"duplicates": {"exact": True, "threshold": 0.5, "shingle": 9}},
    ],
)
def test_what_belongs_to_a_step_that_is_off_has_no_part_in_the_preparation(idle: dict[str, Any]) -> None:
    declared = {"normalization": "nfc", "duplicates": {"exact": True}}
    assert fingerprints(corpus=PREPARED | {"preparation": declared | idle}) == fingerprints(corpus=PREPARED | {"preparation": declared})


def test_where_the_texts_to_compare_with_lie_is_not_what_they_are() -> None:
    here, there = (fingerprints(corpus=PREPARED | {"preparation": {"decontamination": {"ngram": 13, "files": [path]}}}) for path in ("/a", "/b"))
    assert here == there


KEPT = {"ngram": 13, "max_shared": 0, "min_shared_share": 0.0, "max_texts": 10, "test_split": True, "files": 0}


def test_prompts_are_a_part_of_a_preparation_that_compares_with_them() -> None:
    def prepared(against: dict[str, Any], *prompts: str) -> str:
        sections = {"corpus": PREPARED | {"preparation": {"decontamination": against}}, "evaluation": {"prompts": prompts}}
        return fingerprints(**sections)[Stage.PREPARE]

    plain, asked = {"ngram": 13}, {"ngram": 13, "prompts": True}
    assert prepared(plain, "one") == prepared(plain, "two") == prepared(plain | {"prompts": False, "validation_split": False})
    assert len({prepared(plain), prepared(asked, "one"), prepared(asked, "two"), prepared(plain | {"validation_split": True})}) == 4
    section = RunConfig.model_validate(BASE | {"corpus": PREPARED | {"preparation": {"decontamination": plain}}}).identity(Stage.PREPARE)
    assert section == {"corpus": {"preparation": {"decontamination": KEPT}}}, "as it was before these keys came"


def test_decontamination_must_have_something_to_compare_with() -> None:
    with pytest.raises(ValueError, match=r"decontamination\.ngram compares with nothing"):
        RunConfig.model_validate(BASE | {"corpus": PREPARED | {"preparation": {"decontamination": {"ngram": 13, "test_split": False}}}})
