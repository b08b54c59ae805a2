"""The control half of `tokenize`: decides engine and shard format once, runs one item per corpus group, and puts the manifest together."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

from schemas.artifact import FileEntry, content_hash_of
from schemas.canonical import hash_of
from schemas.config import RunConfig
from schemas.errors import ConfigError, InputError, Problem
from schemas.frozen import thaw
from schemas.job import FileRead, ItemRecord, WorkItem, WorkPlan
from schemas.manifest import SPLITS, AcceptedFile, CorpusManifest, Shard, ShardManifest
from schemas.stage import Stage
from tasks.recorded_file import entry_of, verified_bytes
from tasks.taking_over import finish_items
from tasks.tokenize.conversation import ChatTemplate
from tasks.tokenize.decision import decide
from tasks.tokenize.facts import ShardFacts
from tasks.tokenize.loading import LOADER
from tasks.tokenize.packing import id_dtype
from tasks.tokenize.parquet_frame import LAYOUT_OF
from tasks.tokenize.reuse import find_donors, offers
from tasks.tokenize.shard_file import MAX_PAYLOAD_BYTES
from tasks.tokenizer.corpus import MANIFEST_NAME, open_corpus
from tasks.tokenizer.existing import CONFIG_NAME, TOKENIZER_NAME
from tasks.work import Draft, Work


def build(work: Work) -> Draft:
    """Tokenizes every group and returns shards and manifest.

    The content hash covers the shards and what is needed to read them, not the engine: both engines give the same ids.

    Raises:
        ConfigError: gigatoken is asked for and refuses the tokenizer, or a shard would be too large.
        InputError: the corpus has no training documents.
    """
    corpus_entry = entry_of(work.inputs[work.config.corpus_stage], MANIFEST_NAME)
    corpus = open_corpus(work.input_dir(work.config.corpus_stage, corpus_entry), manifest=corpus_entry)
    tokenizer_entry = entry_of(work.inputs[Stage.TOKENIZER], TOKENIZER_NAME)
    facts = _decide(work, tokenizer_entry)
    plan = plan_groups(corpus.manifest)
    donors = find_donors(work.storage, key=work.key, name=work.config.name, facts=facts)
    groups: dict[int, list[AcceptedFile]] = {group: [] for group in groups_of(corpus.manifest)}
    for file in corpus.manifest.files:
        groups[file.group].append(file)
    offered = partial(offers, storage=work.storage, groups=groups, donors=donors)
    finish_items(work, offered, step_name=plan.step_name, num_items=len(plan.items))
    options = {
        "corpus": corpus_entry.model_dump(mode="json"),
        "tokenizer": tokenizer_entry.model_dump(mode="json"),
        "facts": facts.model_dump(mode="json"),
        **_chat_template(work),
        "groups": list(groups_of(corpus.manifest)),
        "donors": [donor.model_dump(mode="json") for donor in donors],
    }
    reads = _reads(work, corpus.manifest, entry=corpus_entry)
    records = work.run_array(plan, module="tasks.tokenize.job", options=options, reads=reads, loader=LOADER)
    manifest = manifest_of(records, facts=facts, source_names=work.config.corpus.source_names)
    files = tuple(shard.file for shard in manifest.shards)
    entry = work.publish_json("manifest.json", manifest)
    tokens = {split: manifest.num_tokens(split) for split in SPLITS}
    padding = {split: manifest.num_sequences(split) * manifest.sequence_length - tokens[split] for split in SPLITS}
    reused = sum(int(record.output["reused"]) for record in records)
    work.note(
        f"{sum(tokens.values()):,} tokens in {len(files)} shards ({manifest.num_sequences('train'):,} training sequences of "
        f"{manifest.sequence_length}, {sum(padding.values()) / sum((*tokens.values(), *padding.values())):.2%} padding), "
        f"encoded by {facts.engine}" + (f"; {reused} shards taken over from earlier artifacts" if reused else "")
    )
    summary = {
        "tokens": tokens,
        "sequences": {split: manifest.num_sequences(split) for split in SPLITS},
        **({"sequences_by_source": manifest.sequences_by_source("train")} if facts.by_source else {}),
        "padding": padding,
        "shards": len(files),
        "reused_shards": reused,
        "shadow_checked_documents": sum(int(record.output["checked"]) for record in records),
        **facts.model_dump(mode="json"),
    }
    readable = FileEntry(path="facts", size=0, xxh3=hash_of(facts.stated()))
    return Draft(files=(*files, entry), summary=summary, content_hash=content_hash_of((*files, readable)))


def _reads(work: Work, manifest: CorpusManifest, *, entry: FileEntry) -> Iterator[FileRead]:
    """Yields what items open of the corpus: its manifest all of them, each its group's files."""
    key, items = work.inputs[work.config.corpus_stage].key, {group: index for index, group in enumerate(groups_of(manifest))}
    yield FileRead(key=key, file=entry)
    yield from (FileRead(key=key, file=file.file, item=items[file.group]) for file in manifest.files)


def groups_of(manifest: CorpusManifest) -> tuple[int, ...]:
    """Returns the corpus groups that have documents, in order: item i works on the i-th."""
    return tuple(sorted({file.group for file in manifest.files}))


def plan_groups(manifest: CorpusManifest) -> WorkPlan:
    """Returns the work plan: one item per group, all of its splits.

    Raises:
        InputError: there is nothing to train on.
    """
    if not sum(file.documents for file in manifest.of_split("train")):
        mend = "add documents, or lower corpus.splits.validation and corpus.splits.test"
        raise InputError("the accepted corpus has no training documents", why="all accepted documents fell into the held-out splits", mend=mend)
    weights: Counter[int] = Counter()
    for file in manifest.files:
        weights[file.group] += file.text_bytes
    items = tuple(WorkItem(index=index, weight_bytes=weights[group], label=f"g{group:04d}") for index, group in enumerate(groups_of(manifest)))
    return WorkPlan(stage=Stage.TOKENIZE, step_name="group", items=items)


def manifest_of(records: tuple[ItemRecord, ...], *, facts: ShardFacts, source_names: tuple[str, ...]) -> ShardManifest:
    """Returns the manifest over all items' shards: by (split, group, position), the sources of a split one after the other where they are cut so."""
    shards = [Shard.model_validate(thaw(shard)) for record in records for shard in record.output["shards"]]
    places = {name: place for place, name in enumerate(source_names)} if facts.by_source else {"": 0}
    shards.sort(key=lambda shard: (SPLITS.index(shard.split), places[shard.source], shard.group, shard.file.path))
    return ShardManifest(
        layout=facts.layout,
        dtype=facts.dtype,
        sequence_length=facts.sequence_length,
        vocab_size=facts.vocab_size,
        end_of_text_id=facts.end_of_text_id,
        tokenizer_hash=facts.tokenizer_hash,
        engine=facts.engine,
        packing=facts.packing,
        by_source=facts.by_source,
        boundaries=facts.boundaries,
        loss_masks=bool(facts.conversations),
        shards=tuple(shards),
    )


def _decide(work: Work, tokenizer_entry: FileEntry) -> ShardFacts:
    """Returns the decisions that hold for all shards, from the recipe and the tokenizer."""
    config = work.config
    decided = decide(
        work.inputs[Stage.TOKENIZER],
        lambda: verified_bytes(work.input_dir(Stage.TOKENIZER, tokenizer_entry), tokenizer_entry, subject="tokenizer"),
        end_of_text=config.tokenizer.end_of_text,
        wanted=config.tokenization.engine,
    )
    if decided.choice.name == "huggingface" and config.tokenization.engine == "auto":
        work.note(f"Hugging Face tokenizers encodes: {decided.choice.reason}")
    dtype = id_dtype(decided.facts.vocab_size)
    _refuse_large_shards(config, itemsize=dtype.itemsize)
    return ShardFacts(
        layout=config.tokenization.layout,
        dtype="uint16" if dtype.itemsize == 2 else "uint32",
        sequence_length=config.tokenization.sequence_length,
        sequences_per_shard=config.tokenization.sequences_per_shard,
        vocab_size=decided.facts.vocab_size,
        end_of_text=config.tokenizer.end_of_text,
        end_of_text_id=decided.facts.end_of_text_id,
        tokenizer_hash=work.inputs[Stage.TOKENIZER].content_hash,
        writer=f"pyarrow {LAYOUT_OF if config.tokenization.layout == 'fixed' else version('pyarrow')}",
        engine=decided.choice.name,
        packing=config.tokenization.packing,
        by_source=config.tokenization.by_source,
        boundaries=config.tokenization.boundaries,
        conversations=config.corpus.conversations,
    )


def _chat_template(work: Work) -> dict[str, Any]:
    """Returns the option that holds the tokenizer's chat template, checked; none where there are no conversations. Raises InputError."""
    if not work.config.corpus.conversations:
        return {}
    entry = entry_of(work.inputs[Stage.TOKENIZER], CONFIG_NAME)
    content = verified_bytes(work.input_dir(Stage.TOKENIZER, entry), entry, subject="tokenizer")
    return {"chat_template": ChatTemplate.of_tokenizer(content).model_dump(mode="json")}


def _refuse_large_shards(config: RunConfig, *, itemsize: int) -> None:
    rows, length = config.tokenization.sequences_per_shard, config.tokenization.sequence_length
    if rows * length * itemsize > MAX_PAYLOAD_BYTES:
        message = f"x sequence_length ({length}) x {itemsize} bytes = {rows * length * itemsize:,} bytes; a shard holds at most {MAX_PAYLOAD_BYTES:,}"
        raise ConfigError((Problem("tokenization.sequences_per_shard", repr(rows), message, nearest=str(MAX_PAYLOAD_BYTES // (length * itemsize))),))
