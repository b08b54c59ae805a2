"""The control half of `export`: one work item that turns the training's final checkpoint into a Hugging Face folder."""

import json
from typing import Any

from cluster.storage import Storage
from schemas.artifact import ArtifactRecord, content_hash_of
from schemas.checkpoint import CommitRecord
from schemas.errors import VerificationError
from schemas.job import FileRead, WorkItem, WorkPlan
from schemas.sealed import SealBrokenError
from schemas.stage import Stage
from tasks.recorded_file import entry_of, stored_entry, verified_bytes
from tasks.tokenizer.existing import TOKENIZER_NAME
from tasks.work import Draft, Work

TOKENIZER_REPORT = "report.json"


def build(work: Work) -> Draft:
    """Exports and returns the draft, with dtype, step and number of parameters in its summary.

    Raises:
        VerificationError: no commit of the training artifact fits its record.
    """
    training, tokenizer = work.inputs[Stage.TRAIN], work.inputs[Stage.TOKENIZER]
    name, commit = final_commit(work.storage, training)
    weight = sum(entry.size for entry in commit.files)
    plan = WorkPlan(stage=Stage.EXPORT, step_name="export", items=(WorkItem(index=0, weight_bytes=weight, label=f"step {commit.step}"),))
    options: dict[str, Any] = {
        "commit": name,
        "content_hash": training.content_hash,
        "tokenizer_files": [entry.model_dump(mode="json") for entry in tokenizer.files if entry.path != TOKENIZER_REPORT and "/" not in entry.path],
        "end_of_text_id": _end_of_text_id(work),
    }
    files = (stored_entry(work.storage, f"{training.key}/{name}", path=name), *training.files)
    reads = [FileRead(key=training.key, file=file) for file in files]
    (record,) = work.run_array(plan, module="tasks.export.job", options=options, reads=reads)
    work.note(f"exported step {record.output['step']}: {record.output['num_parameters']:,} parameters, {record.output['dtype']}")
    return Draft(files=record.files, summary=dict(record.output))


def final_commit(storage: Storage, training: ArtifactRecord) -> tuple[str, CommitRecord]:
    """Returns (name relative to the artifact, commit) of the checkpoint that the training artifact's content hash stands for.

    Raises:
        VerificationError: there is none.
    """
    folder = f"{training.key}/commits"
    findings = [f"{folder}: no commit has the content hash {training.content_hash[:12]} of the record"]
    for name in reversed(storage.names(folder)):
        try:
            commit = CommitRecord.from_bytes(storage.read(f"{folder}/{name}"))
        except SealBrokenError as error:
            findings.append(f"{folder}/{name}: {error}")
            continue
        if content_hash_of(commit.files) == training.content_hash:
            return f"commits/{name}", commit
    raise VerificationError(tuple(findings), subject=training.key, mend="headrace verify names the damaged file; --from train builds it anew")


def _end_of_text_id(work: Work) -> int:
    """Returns the id of the end-of-text token, from the tokenizer's own file."""
    record = work.inputs[Stage.TOKENIZER]
    entry = entry_of(record, TOKENIZER_NAME)
    tokenizer = json.loads(verified_bytes(work.input_dir(Stage.TOKENIZER, entry), entry, subject=record.key))
    name = work.config.tokenizer.end_of_text
    for token in tokenizer["added_tokens"]:
        if token["content"] == name:
            return int(token["id"])
    raise VerificationError((f"tokenizer.json: has no token {name!r}",), subject=record.key)
