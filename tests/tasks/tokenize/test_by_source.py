"""Cut by source: no row holds documents of two sources, nothing is lost, and shards stand in the manifest source by source."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.artifact import ArtifactRecord
from schemas.manifest import SPLITS, ShardManifest, Split
from schemas.mixture import MixtureConfig
from schemas.stage import Stage
from tasks.tokenize.build import build
from tasks.tokenize.cutting import ShardCutter
from tasks.tokenize.facts import ShardFacts
from tasks.tokenize.megatron import export_split
from tasks.tokenize.shard_reader import ShardReader
from tasks.tokenizer.corpus import Columns
from tasks.tokenizer.engine import Encoded
from tasks.train.prescribed_order import order_of
from tests.fakes.in_process_work import Documents, InProcessWork, commit, config_with, write_corpus
from tests.tasks.tokenize.conftest import Site, texts

SOURCES = ["web", "books", "code"]
"""In the recipe's order, which is not the alphabet's."""
COUNTS: dict[tuple[int, Split], dict[str, int]] = {
    (0, "train"): {"web": 40, "books": 1, "code": 25},
    (1, "train"): {"books": 30},
    (2, "train"): {"web": 3, "code": 50},
    (2, "validation"): {"web": 2, "code": 4},
}


DOCUMENTS: Documents = {place: texts(sum(counts.values()), seed=number) for number, (place, counts) in enumerate(COUNTS.items())}


@pytest.fixture
def corpus(site: Site) -> ArtifactRecord:
    sources = {place: [name for name, count in counts.items() for _ in range(count)] for place, counts in COUNTS.items()}
    return write_corpus(site.root, DOCUMENTS, key="validate/mixed-000000000000", sources=sources)


def stage(site: Site, corpus: ArtifactRecord, *, key: str = "", **tokenization: Any) -> InProcessWork:
    config = config_with(
        corpus={"sources": [{"path": "nowhere", "name": name} for name in SOURCES]},
        tokenizer={"end_of_text": site.end_of_text},
        tokenization={"sequence_length": 32, "sequences_per_shard": 16, "by_source": True} | tokenization,
    )
    return InProcessWork(site.root, Stage.TOKENIZE, config, {Stage.VALIDATE: corpus, Stage.TOKENIZER: site.tokenizer}, key=key)


def manifest_of(work: InProcessWork) -> ShardManifest:
    build(work)
    return ShardManifest.model_validate_json((work.output_dir / "manifest.json").read_bytes())


def decoded(work: InProcessWork, manifest: ShardManifest) -> dict[tuple[str, Split], str]:
    """Returns the text of each source and split."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(work.root / work.inputs[Stage.TOKENIZER].key / "tokenizer.json"))
    found: dict[tuple[str, Split], list[int]] = {}
    for split in SPLITS:
        reader, row = ShardReader(manifest, folder=work.output_dir, split=split), 0
        for shard in manifest.of_split(split):
            indices = np.arange(row, row + shard.rows)
            is_text = np.arange(manifest.sequence_length) < reader.lengths(indices)[:, None]
            found.setdefault((shard.source, split), []).extend(reader.rows(indices)[is_text].tolist())
            row += shard.rows
    return {place: tokenizer.decode(ids, skip_special_tokens=False) for place, ids in found.items()}


@pytest.mark.parametrize("layout", ["fixed", "list"])
def test_every_sources_documents_are_in_its_own_shards(site: Site, corpus: ArtifactRecord, layout: str) -> None:
    work = stage(site, corpus, layout=layout)
    expected: dict[tuple[str, Split], str] = {}
    for (group, split), counts in sorted(COUNTS.items()):
        remaining = list(DOCUMENTS[group, split])
        for name, count in counts.items():
            own, remaining = remaining[:count], remaining[count:]
            expected[name, split] = expected.get((name, split), "") + "".join(text + site.end_of_text for text in own)
    assert decoded(work, manifest_of(work)) == expected


def test_shards_stand_source_by_source_in_the_recipes_order(site: Site, corpus: ArtifactRecord) -> None:
    manifest = manifest_of(stage(site, corpus))
    places = [(SPLITS.index(shard.split), SOURCES.index(shard.source), shard.group, shard.file.path) for shard in manifest.shards]
    assert places == sorted(places)
    assert {shard.source for shard in manifest.of_split("train")} == set(SOURCES)
    assert manifest.by_source


def test_a_shard_says_whose_it_is(site: Site, corpus: ArtifactRecord) -> None:
    work = stage(site, corpus)
    for shard in manifest_of(work).shards:
        facts = json.loads(pq.read_metadata(work.output_dir / shard.file.path).metadata[b"headrace"])
        assert (facts["by_source"], facts["source_name"], facts["rows"]) == (True, shard.source, shard.rows)


def test_documents_are_exported_whole_whatever_their_source(site: Site, corpus: ArtifactRecord, tmp_path: Path) -> None:
    work = stage(site, corpus)
    manifest_of(work)
    found = export_split(work.output_dir, split="train", prefix=tmp_path / "out/train")
    assert found.documents == sum(sum(counts.values()) for (_, split), counts in COUNTS.items() if split == "train")


def test_without_it_nothing_speaks_of_sources(site: Site, corpus: ArtifactRecord) -> None:
    work = stage(site, corpus, by_source=False)
    manifest = manifest_of(work)
    facts = json.loads(pq.read_metadata(work.output_dir / manifest.shards[0].file.path).metadata[b"headrace"])
    assert not {"by_source", "source_name", "packing", "boundaries"} & set(facts)
    stored = json.loads((work.output_dir / "manifest.json").read_bytes())
    assert not {"by_source", "packing", "boundaries"} & set(stored)
    assert not {"source", "lengths_offset", "starts_offset"} & set(stored["shards"][0])


def test_shards_cut_otherwise_are_not_taken_over(site: Site, corpus: ArtifactRecord) -> None:
    together = stage(site, corpus, key="tokenize/test-aaaaaaaaaaaa", by_source=False)
    record = commit(site.root, Stage.TOKENIZE, build(together), key=together.key)
    together.storage.create_exclusive(together.layout.record, record.sealed().to_bytes())
    apart = stage(site, corpus, key="tokenize/test-bbbbbbbbbbbb")
    assert {shard.source for shard in manifest_of(apart).shards} == set(SOURCES)
    again = stage(site, corpus, key="tokenize/test-cccccccccccc", by_source=False)
    assert build(again).summary["reused_shards"] == len(record.files) - 1


def test_how_documents_are_batched_does_not_matter() -> None:
    facts = ShardFacts(
        layout="fixed",
        dtype="uint16",
        sequence_length=4,
        sequences_per_shard=2,
        vocab_size=100,
        end_of_text="E",
        end_of_text_id=99,
        tokenizer_hash="",
        writer="",
        engine="huggingface",
        by_source=True,
    )
    names, lengths = ["a", "a", "b", "b", "b", "a", "c"], [3, 5, 1, 0, 9, 2, 4]

    def cut(batch: int) -> list[tuple[str, int, int]]:
        cutter, found = ShardCutter(facts), []
        for first in range(0, len(names), batch):
            part = lengths[first : first + batch]
            encoded = Encoded(ids=np.arange(sum(part), dtype=np.uint32) % 7, offsets=np.cumsum([0, *part], dtype=np.int64))
            columns = Columns(pa.array([""] * len(part)), pa.array([""] * len(part)), pa.array(names[first : first + batch]))
            found += cutter.add(columns, encoded, sizes=np.array(part, dtype=np.int64))
        found += cutter.finish()
        return [(shard.source, shard.rows.shape[0], shard.tokens) for shard in found]

    assert cut(1) == cut(2) == cut(7)
    assert [source for source, _, _ in cut(3)] == ["a", "a", "b", "b", "a", "c"]


def test_training_can_weigh_what_was_cut_by_source(site: Site, corpus: ArtifactRecord) -> None:
    """The summary tells the plan how much there is of each source, and the order that a mixture gives reads those sources' own rows."""
    work = stage(site, corpus)
    summary = build(work).summary
    manifest = ShardManifest.model_validate_json((work.output_dir / "manifest.json").read_bytes())
    assert summary["sequences_by_source"] == manifest.sequences_by_source("train")
    assert list(summary["sequences_by_source"]) == SOURCES
    assert sum(summary["sequences_by_source"].values()) == manifest.num_sequences("train")
    order = order_of(manifest, seed=1, mixture=MixtureConfig(weights={"web": 0, "books": 1, "code": 3}))
    used = order.at(np.arange(4000, dtype=np.int64))
    owners = np.repeat([shard.source for shard in manifest.of_split("train")], [shard.rows for shard in manifest.of_split("train")])
    assert {str(name): int(count) for name, count in zip(*np.unique(owners[used], return_counts=True), strict=True)} == {"books": 1000, "code": 3000}
