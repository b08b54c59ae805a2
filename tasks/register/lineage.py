"""Where a model comes from: the records of every artifact between the raw files and the export. What tags and the model card say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.artifact import ArtifactRecord
from schemas.stage import Stage
from tasks.store import Store

_MOST_TAG_CHARS = 1000
"""Longest tag; some MLflow stores refuse more than a few thousand characters."""


@dataclass(frozen=True)
class Lineage:
    """The records behind one model, by stage."""

    records: Mapping[Stage, ArtifactRecord]

    def __getitem__(self, stage: Stage) -> ArtifactRecord:
        """Returns the record of one stage."""
        return self.records[stage]

    @property
    def corpus_stage(self) -> Stage:
        """The stage that made the documents which the model was trained on."""
        return Stage.PREPARE if Stage.PREPARE in self.records else Stage.VALIDATE

    @property
    def root_hash(self) -> str:
        """Content hash of the exported model."""
        return self[Stage.EXPORT].content_hash

    def tags(self, *, run_id: str, commit: str) -> dict[str, str]:
        """Returns the tags of the registered version: hashes that lead back to the raw files.

        Args:
            run_id: the run that registers.
            commit: git commit of this checkout, or empty.
        """
        step, acts = self[Stage.EXPORT].summary["step"], self[Stage.TRAIN].summary.get("acts", ())
        return {
            "headrace.dataset": self[self.corpus_stage].content_hash,
            "headrace.tokenizer": self[Stage.TOKENIZER].content_hash,
            "headrace.tokens": self[Stage.TOKENIZE].content_hash,
            "headrace.checkpoint": f"{self[Stage.TRAIN].content_hash} step {step}",
            "headrace.export": self[Stage.EXPORT].key,
            "headrace.commit": commit or "not a git checkout",
            "headrace.run_id": run_id,
            **({"headrace.acts": _shortened(acts)} if acts else {}),
        }


def _shortened(acts: Sequence[str]) -> str:
    """Returns what was done on the way that changed numbers, as a tag holds it; the training record names all of it."""
    shown = "; ".join(acts)
    return shown if len(shown) <= _MOST_TAG_CHARS else f"{len(acts)} acts, the first: {acts[0]}"[:_MOST_TAG_CHARS]


def trace(store: Store, *, export: ArtifactRecord, evaluation: ArtifactRecord) -> Lineage:
    """Returns the lineage of an exported and evaluated model. Reads a handful of small records.

    Raises:
        VerificationError: a record on the way is damaged.
        FileNotFoundError: one is missing.
    """
    records = {Stage.EXPORT: export, Stage.EVALUATE: evaluation}
    todo = [*export.inputs, *evaluation.inputs]
    while todo:
        ref = todo.pop()
        if ref.stage not in records:
            records[ref.stage] = store.read(ref.key)
            todo += records[ref.stage].inputs
    return Lineage(records)
