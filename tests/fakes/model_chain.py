"""Finished artifacts from text to an exported model, made in this process: real tokens and a real export of random weights."""

from dataclasses import dataclass
from pathlib import Path

from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.stage import Stage
from tasks.export.build import build as build_export
from tasks.tokenize.build import build as build_tokens
from tests.fakes.in_process_work import InProcessWork, commit, config_with, write_corpus
from tests.fakes.text import documents
from tests.fakes.training_artifact import halves, tiny_llama, write_tokenizer, write_training

LENGTH, VOCABULARY = 32, 320
PROMPTS = ("the water", "")


@dataclass(frozen=True)
class Chain:
    """The artifacts that `evaluate` reads."""

    root: Path
    config: RunConfig
    records: dict[Stage, ArtifactRecord]

    def finish(self, stage: Stage, record: ArtifactRecord) -> None:
        """Writes the record of a stage, with its inputs, where the store finds it."""
        inputs = tuple(self.records[source].ref() for source in self.config.inputs_of(stage))
        self.records[stage] = record.model_copy(update={"inputs": inputs}).sealed()
        path = self.root / record.key / "record.json"
        if not path.exists():
            path.write_bytes(self.records[stage].to_bytes())

    def work(self, stage: Stage, config: RunConfig | None = None, *, key: str = "") -> InProcessWork:
        """Returns the work of a stage on these artifacts."""
        inputs = {source: self.records[source] for source in self.config.inputs_of(stage)}
        return InProcessWork(self.root, stage, config or self.config, inputs, key=key)


def chain_config(**evaluation: object) -> RunConfig:
    """Returns the chain's configuration, with other values for `evaluation`."""
    values = {"prompts": list(PROMPTS), "max_new_tokens": 6, "length_buckets": [64, 256], "max_bytes": 6_000}
    return config_with(tokenization={"sequence_length": LENGTH, "shadow_check_documents": 5}, evaluation=values | evaluation)


def make_chain(root: Path) -> Chain:
    """Writes the artifacts of validate, tokenizer, tokenize, train and export below `root`."""
    config = chain_config()
    train, test = documents(120, seed=1), documents(30, seed=2)
    texts = {(0, "train"): train[:70], (1, "train"): train[70:], (0, "validation"): documents(8, seed=3), (1, "test"): test}
    records = {Stage.VALIDATE: write_corpus(root, texts)}
    records[Stage.TOKENIZER] = write_tokenizer(root, train, vocab_size=VOCABULARY)
    chain = Chain(root, config, records)
    tokens = chain.work(Stage.TOKENIZE)
    records[Stage.TOKENIZE] = commit(root, Stage.TOKENIZE, build_tokens(tokens), key=tokens.key)
    weights, model_config = tiny_llama(vocab_size=VOCABULARY, length=LENGTH)
    records[Stage.TRAIN] = write_training(root, weights, cuts=halves(weights), precision="fp32", model_config=model_config)
    export = chain.work(Stage.EXPORT)
    records[Stage.EXPORT] = commit(root, Stage.EXPORT, build_export(export), key=export.key)
    for stage, record in dict(records).items():
        chain.finish(stage, record)
    return chain
