"""What every item of `tokenize` needs and none changes: the corpus' manifest, the tokenizer in the engine that encodes and in the reference.

Items are forks of one process that has called `load`, so a node reads and builds this once, not once per group. Where nothing was
loaded ahead (the zygote died of it, or there is none), an item loads by itself.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from schemas.artifact import FileEntry
from schemas.config import RunConfig
from schemas.frozen import thaw
from schemas.job import TaskSpec
from schemas.stage import Stage
from tasks.entry import config_of
from tasks.recorded_file import verified_bytes
from tasks.tokenize.conversation import ChatTemplate, ConversationEncoder
from tasks.tokenize.facts import ShardFacts
from tasks.tokenizer.corpus import Corpus, open_corpus
from tasks.tokenizer.engine import Engine, HuggingFaceEngine, limit_threads, open_engine

LOADER = f"{__name__}:load"
"""What the zygote calls."""


@dataclass(frozen=True)
class Loaded:
    """What items share. Each entry was verified when it was read."""

    corpus: Corpus
    facts: ShardFacts
    engine: Engine
    reference: HuggingFaceEngine | None
    """For the shadow check; None where it has nothing to compare."""
    conversations: ConversationEncoder | None
    """None where there are no conversations."""


def load(spec_file: Path) -> None:
    """Loads what the items of a job need, and the libraries that they use. Starts no thread, since none survives a fork: nothing is encoded.

    Args:
        spec_file: a `TaskSpec`.

    Raises:
        VerificationError: an input is damaged.
    """
    import awkward  # noqa: F401
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    import tasks.tokenize.cutting
    import tasks.tokenize.reuse
    import tasks.tokenize.shadow
    import tasks.tokenize.shard_file  # noqa: F401

    spec = TaskSpec.model_validate_json(spec_file.read_bytes())
    loaded(spec, config=config_of(spec))


def loaded(spec: TaskSpec, *, config: RunConfig) -> Loaded:
    """Returns what the items of a job share, loaded now or by the process that this one is a fork of.

    Raises:
        VerificationError: an input is damaged.
    """
    limit_threads(spec.job.threads_per_rank)
    options = thaw(spec.job.options)
    return _loaded(
        Path(spec.input_dirs[config.corpus_stage]),
        FileEntry.model_validate(options["corpus"]),
        Path(spec.input_dirs[Stage.TOKENIZER]),
        FileEntry.model_validate(options["tokenizer"]),
        ShardFacts.model_validate(options["facts"]),
        config.tokenization.shadow_check_documents > 0,
        ChatTemplate.model_validate(options["chat_template"]) if "chat_template" in options else None,
    )


@lru_cache(maxsize=1)
def _loaded(
    corpus_dir: Path,
    corpus: FileEntry,
    tokenizer_dir: Path,
    tokenizer: FileEntry,
    facts: ShardFacts,
    is_checked: bool,
    chat_template: ChatTemplate | None,
) -> Loaded:
    """Returns what these files hold: two calls with equal arguments would read equal bytes, or fail."""
    content = verified_bytes(tokenizer_dir, tokenizer, subject="tokenizer")
    return Loaded(
        corpus=open_corpus(corpus_dir, manifest=corpus),
        facts=facts,
        engine=open_engine(facts.engine, content),
        reference=HuggingFaceEngine(content) if is_checked and facts.engine != "huggingface" else None,
        conversations=ConversationEncoder(content, template=chat_template) if chat_template is not None else None,
    )
