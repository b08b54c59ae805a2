"""What tags say of where a model comes from."""

from typing import Any

import pytest

from schemas.artifact import ArtifactRecord
from schemas.stage import Stage, stages_of
from tasks.register.lineage import Lineage


def lineage(summary: dict[str, Any], *, prepared: bool = False) -> Lineage:
    records = {
        stage: ArtifactRecord.model_construct(key=f"{stage.value}/tiny", content_hash=stage.value, summary={})
        for stage in stages_of(prepared=prepared)
    }
    records[Stage.TRAIN] = records[Stage.TRAIN].model_copy(update={"summary": summary})
    records[Stage.EXPORT] = records[Stage.EXPORT].model_copy(update={"summary": {"step": 40}})
    return Lineage(records)


def test_a_calm_training_needs_no_tag() -> None:
    assert "headrace.acts" not in lineage({}).tags(run_id="run", commit="")


@pytest.mark.parametrize(("prepared", "dataset"), [(False, "validate"), (True, "prepare")])
def test_the_dataset_is_what_the_model_was_trained_on(prepared: bool, dataset: str) -> None:
    assert lineage({}, prepared=prepared).tags(run_id="run", commit="")["headrace.dataset"] == dataset


@pytest.mark.parametrize(
    ("acts", "tag"),
    [
        (["resized at step 5: 2 → 1 ranks"], "resized at step 5: 2 → 1 ranks"),
        (["skipped update at step 3: x", "rewind at step 9: y"], "skipped update at step 3: x; rewind at step 9: y"),
        (
            [f"skipped update at step {step}: the loss is not finite" for step in range(40)],
            "40 acts, the first: skipped update at step 0: the loss is not finite",
        ),
    ],
)
def test_what_changed_numbers_is_on_the_model(acts: list[str], tag: str) -> None:
    assert lineage({"acts": acts}).tags(run_id="run", commit="")["headrace.acts"] == tag
