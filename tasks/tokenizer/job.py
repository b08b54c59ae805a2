"""The compute half of `tokenizer`: one item that trains or takes over a tokenizer and measures it.

Options: `corpus`, the file entry of the accepted corpus' manifest; `existing`, the content hash of the tokenizer that the recipe names, or null.
"""

from pathlib import Path

from cluster.storage import hash_file, publish_file, write_durably
from schemas.artifact import FileEntry
from schemas.canonical import canonical_json
from schemas.errors import VerificationError
from schemas.frozen import thaw
from schemas.manifest import Split
from schemas.tokens_config import TokenizerConfig
from tasks.entry import ItemOutcome, ItemTask, item_main
from tasks.tokenizer.bpe import train_bpe
from tasks.tokenizer.corpus import Corpus, open_corpus
from tasks.tokenizer.engine import choose_engine, facts_of, limit_threads
from tasks.tokenizer.existing import CONFIG_NAME, TOKENIZER_NAME, ExistingTokenizer, existing_hash, read_existing
from tasks.tokenizer.folder import tokenizer_config
from tasks.tokenizer.report import SAMPLE_BYTES, TokenizerReport, Trained, measure

REPORT_NAME = "report.json"


def run(task: ItemTask) -> ItemOutcome:
    """Makes `tokenizer.json`, `tokenizer_config.json` and `report.json`. The gate over the report is the control half's."""
    limit_threads(task.spec.job.threads_per_rank)
    config = task.config.tokenizer
    corpus = open_corpus(task.input_dirs[task.config.corpus_stage], manifest=FileEntry.model_validate(thaw(task.options["corpus"])))
    tokenizer_json, config_json, origin = _make(task, corpus=corpus)
    report = _measure(tokenizer_json, config=config, corpus=corpus, origin=origin)
    contents = {TOKENIZER_NAME: tokenizer_json, CONFIG_NAME: config_json, REPORT_NAME: canonical_json(report)}
    files = tuple(_publish(task, name, content) for name, content in contents.items())
    return ItemOutcome(files=files, output=report.model_dump(mode="json"))


def _make(task: ItemTask, *, corpus: Corpus) -> tuple[bytes, bytes, Trained]:
    """Returns (tokenizer.json, tokenizer_config.json, where they came from)."""
    config = task.config.tokenizer
    if config.path is not None:
        existing = _read_existing(Path(config.path), expected=str(task.options["existing"]), own_template=config.chat_template is not None)
        facts = facts_of(existing.tokenizer_json, end_of_text=config.end_of_text, subject=f"the tokenizer {config.path}")
        origin = Trained(kind="existing", requested_vocab_size=facts.vocab_size)
        return existing.tokenizer_json, tokenizer_config(existing.config, end_of_text=config.end_of_text, chat_template=config.chat_template), origin
    texts: list[str] = []
    text_bytes = 0
    for batch in corpus.sample("train", max_bytes=config.training_bytes):
        texts += batch.texts
        text_bytes += batch.num_bytes
        task.report(text_bytes)
    trained = train_bpe(texts, config=config)
    origin = Trained(kind="trained", trainer=trained.trainer, documents=len(texts), text_bytes=text_bytes, requested_vocab_size=config.vocab_size)
    return trained.tokenizer_json, tokenizer_config({}, end_of_text=config.end_of_text, chat_template=config.chat_template), origin


def _read_existing(path: Path, *, expected: str, own_template: bool) -> ExistingTokenizer:
    """Returns the recipe's own tokenizer, which must be on this node what the artifact's name stands for. Raises VerificationError."""
    found = existing_hash(path, hash_file)
    if found != expected:
        finding = f"{path}: content {found[:12]} on this node, {expected[:12]} when the tokenizer was planned"
        raise VerificationError((finding,), subject="tokenizer.path", mend="headrace run takes the tokenizer as it is now")
    return read_existing(path, own_template=own_template)


def _measure(tokenizer_json: bytes, *, config: TokenizerConfig, corpus: Corpus, origin: Trained) -> TokenizerReport:
    split: Split = "validation" if corpus.manifest.of_split("validation") else "train"
    return measure(
        tokenizer_json,
        corpus.sample(split, max_bytes=SAMPLE_BYTES),
        split=split,
        facts=facts_of(tokenizer_json, end_of_text=config.end_of_text, subject="the tokenizer"),
        choice=choose_engine(tokenizer_json, wanted="auto"),
        origin=origin,
        end_of_text=config.end_of_text,
    )


def _publish(task: ItemTask, name: str, content: bytes) -> FileEntry:
    temporary = task.temporary(name)
    write_durably(temporary, content)
    return publish_file(temporary, task.output_dir / name)


if __name__ == "__main__":
    item_main(run)
