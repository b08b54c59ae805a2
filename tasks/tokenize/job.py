"""The compute half of `tokenize`: one item per corpus group, all of its splits.

Options, the same for all items:
    corpus      file entry of the accepted corpus' manifest
    tokenizer   file entry of `tokenizer.json`
    facts       `ShardFacts`: what every shard states about itself
    groups      the corpus groups in work, in order of the item's index
    chat_template  `ChatTemplate` of conversations; absent: there are none
    donors      earlier artifacts whose shards may be taken over

Output of an item: `{"shards": [Shard, …], "checked": documents of the shadow check, "reused": shards taken over}`.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cluster.storage import AlreadyExistsError, publish_file
from schemas.errors import VerificationError
from schemas.frozen import thaw
from schemas.manifest import SPLITS, AcceptedFile, Shard, Split
from tasks.entry import ItemOutcome, ItemTask, item_main
from tasks.taking_over import taken_by_other_bytes
from tasks.tokenize.conversation import ConversationEncoder
from tasks.tokenize.cutting import ShardCutter
from tasks.tokenize.encoding import encode_documents, places_of
from tasks.tokenize.facts import ShardFacts
from tasks.tokenize.loading import loaded
from tasks.tokenize.packing import PackedShard
from tasks.tokenize.reuse import Donor, Reuse
from tasks.tokenize.shadow import ShadowCheck, shadow_bytes
from tasks.tokenize.shard_file import write_shard
from tasks.tokenizer.corpus import Corpus
from tasks.tokenizer.engine import Engine

logger = logging.getLogger(__name__)


@dataclass
class _Group:
    """A group in work."""

    task: ItemTask
    corpus: Corpus
    facts: ShardFacts
    engine: Engine
    shadow: ShadowCheck
    conversations: ConversationEncoder | None
    reuse: Reuse
    done_bytes: int = 0
    shards: list[Shard] = field(default_factory=list)
    reused: int = 0


def run(task: ItemTask) -> ItemOutcome:
    """Encodes, checks, packs and publishes the shards of one corpus group.

    Raises:
        InputError: the chat template refuses a conversation.
        VerificationError: an input is damaged, the engines disagree, or a shard's name is taken by other bytes.
    """
    options = thaw(task.options)
    shared = loaded(task.spec, config=task.config)
    group = int(options["groups"][task.index])
    files = [file for split in SPLITS for file in shared.corpus.manifest.of_split(split) if file.group == group]
    wanted = task.config.tokenization.shadow_check_documents
    work = _Group(
        task=task,
        corpus=shared.corpus,
        facts=shared.facts,
        engine=shared.engine,
        shadow=ShadowCheck(
            shared.reference,
            engine=shared.engine,
            documents=wanted,
            of=sum(file.documents for file in files),
            most_bytes=shadow_bytes(
                group_bytes=sum(file.text_bytes for file in files), corpus_bytes=sum(file.text_bytes for file in shared.corpus.manifest.files)
            ),
        ),
        conversations=shared.conversations,
        reuse=Reuse.of_group(task, map(Donor.model_validate, options["donors"]), group=group),
    )
    for file in files:
        _tokenize_file(work, file)
    return ItemOutcome(
        files=tuple(shard.file for shard in work.shards),
        output={"shards": [shard.model_dump(mode="json") for shard in work.shards], "checked": work.shadow.checked, "reused": work.reused},
    )


def shard_name(split: Split, *, group: int, position: int) -> str:
    """Returns a shard's path within the artifact, from what it holds alone."""
    return f"shards/{split}-g{group:04d}-{position:05d}.parquet"


def _tokenize_file(work: _Group, file: AcceptedFile) -> None:
    """Makes the shards of one (group, split), or takes over those that an earlier artifact made of the same documents.

    A shard is written while the next one is encoded, so at most two are in memory.
    """
    taken = work.reuse.take(file)
    if taken is not None:
        work.shards += taken
        work.reused += len(taken)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard") as writer:
        ahead: Future[Shard] | None = None
        for position, packed in enumerate(_packed(work, file)):
            if ahead is not None:
                work.shards.append(ahead.result())
            ahead = writer.submit(_publish, work, file, packed, position=position)
        if ahead is not None:
            work.shards.append(ahead.result())


def _packed(work: _Group, file: AcceptedFile) -> Iterator[PackedShard]:
    cutter, documents = ShardCutter(work.facts), 0
    for columns in work.corpus.columns(file, with_sources=work.facts.by_source or work.conversations is not None):
        sizes = columns.sizes
        encoded = encode_documents(
            columns,
            sizes=sizes,
            engine=work.engine,
            shadow=work.shadow,
            conversations=work.conversations,
            sources=work.facts.conversations,
            places=partial(places_of, work.corpus.folder / file.file.path),
        )
        yield from cutter.add(columns, encoded, sizes=sizes)
        documents += len(columns.texts)
        work.done_bytes += int(sizes.sum())
        work.task.report(work.done_bytes)
    if documents != file.documents:
        finding = f"{file.file.path}: {documents:,} documents read, the manifest says {file.documents:,}"
        raise VerificationError((finding,), subject="accepted corpus", mend="validate made a wrong manifest: --from validate")
    yield from cutter.finish()


def _publish(work: _Group, file: AcceptedFile, packed: PackedShard, *, position: int) -> Shard:
    """Writes a shard under its final name. One that is there already with equal bytes is kept."""
    name = shard_name(file.split, group=file.group, position=position)
    temporary = work.task.temporary(name)
    about: dict[str, Any] = {
        **work.facts.stated(),
        "split": file.split,
        "group": file.group,
        "position": position,
        "rows": int(packed.rows.shape[0]),
        "tokens": packed.tokens,
        "last_row_tokens": packed.last_row_tokens,
        "source": {"path": file.file.path, "xxh3": file.file.xxh3, "documents": file.documents},
        **({"source_name": packed.source} if packed.source else {}),
    }
    final = work.task.output_dir / name
    try:
        written = write_shard(
            temporary,
            packed.rows,
            layout=work.facts.layout,
            facts=about,
            lengths=packed.lengths,
            starts=packed.starts,
            learned=packed.learned,
        )
        entry = publish_file(temporary, final, xxh3=written.xxh3)
    except AlreadyExistsError as error:
        raise taken_by_other_bytes(final, subject="token shard") from error
    finally:
        temporary.unlink(missing_ok=True)
    return Shard(
        group=file.group,
        split=file.split,
        file=entry.model_copy(update={"path": name}),
        rows=int(packed.rows.shape[0]),
        tokens=packed.tokens,
        last_row_tokens=packed.last_row_tokens,
        payload_offset=written.payload_offset,
        text_bytes=packed.text_bytes,
        source_xxh3=file.file.xxh3,
        source=packed.source,
        lengths_offset=written.lengths_offset,
        starts_offset=written.starts_offset,
        learned_offset=written.learned_offset,
    )


if __name__ == "__main__":
    item_main(run)
