"""The control half of `evaluate`: one work item that scores the exported model on the test split."""

from typing import Any

from schemas.job import WorkItem, WorkPlan
from schemas.stage import Stage
from tasks.recorded_file import entry_of
from tasks.tokenizer.corpus import MANIFEST_NAME
from tasks.work import Draft, Work


def build(work: Work) -> Draft:
    """Evaluates and returns the draft, with bits per byte beside the baselines in its summary."""
    model = work.inputs[Stage.EXPORT].files
    item = WorkItem(index=0, weight_bytes=work.config.evaluation.max_bytes, label="test split")
    options: dict[str, Any] = {
        "corpus_manifest": entry_of(work.inputs[work.config.corpus_stage], MANIFEST_NAME).model_dump(mode="json"),
        "shard_manifest": entry_of(work.inputs[Stage.TOKENIZE], MANIFEST_NAME).model_dump(mode="json"),
        "model_files": [entry.model_dump(mode="json") for entry in model],
    }
    plan = WorkPlan(stage=Stage.EVALUATE, step_name="evaluate", items=(item,))
    (record,) = work.run_array(plan, module="tasks.evaluate.job", options=options)
    baselines = ", ".join(f"{name} {value:.3f}" for name, value in sorted(record.output["baselines"].items()))
    work.note(f"bits per byte {record.output['bits_per_byte']:.3f}" + (f" ({baselines})" if baselines else ""))
    return Draft(files=record.files, summary=dict(record.output))
