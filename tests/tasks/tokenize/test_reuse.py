"""A changed file redoes its group's shards and nothing else; what is taken over is verified first."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import FileStorage
from schemas.artifact import ArtifactRecord
from schemas.frozen import thaw
from schemas.job import ItemRecord
from schemas.manifest import CorpusManifest
from schemas.stage import Stage
from tasks.recorded_file import entry_of
from tasks.tokenize.build import build, groups_of
from tasks.tokenize.reuse import Donor, offers
from tasks.tokenizer.engine import GigatokenEngine
from tests.fakes.in_process_work import InProcessWork, commit, write_corpus

BEFORE, AFTER = "tokenize/test-00000000000a", "tokenize/test-00000000000b"


def finish(work: InProcessWork) -> Any:
    """Builds and commits, as the frame around a stage does."""
    draft = build(work)
    record = commit(work.root, Stage.TOKENIZE, draft, key=work.key)
    FileStorage(work.root).create_exclusive(work.layout.record, record.sealed().to_bytes())
    return draft


@pytest.fixture
def changed(site: Any) -> Any:
    """The same corpus with one more document in group 1, after an artifact of the old one was finished."""
    finish(site.stage(key=BEFORE))
    documents = {**site.documents, (1, "train"): [*site.documents[(1, "train")], "one more document"]}
    return replace(site, documents=documents, corpus=write_corpus(site.root, documents, key="validate/test-00000000000c"))


@pytest.fixture
def encoded_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the documents that are encoded from now on (not the probes that choose the engine)."""
    seen: list[str] = []
    encode = GigatokenEngine.encode_column

    def counting(self: GigatokenEngine, texts: Any) -> Any:
        seen.extend(texts.to_pylist())
        return encode(self, texts)

    monkeypatch.setattr(GigatokenEngine, "encode_column", counting)
    return seen


def test_only_the_documents_of_the_changed_file_are_encoded(changed: Any, encoded_texts: list[str]) -> None:
    draft = build(changed.stage(key=AFTER))
    assert encoded_texts == changed.documents[(1, "train")]
    assert draft.summary["reused_shards"] > 0


def test_the_bytes_are_those_of_a_stage_that_took_nothing_over(changed: Any) -> None:
    taken = changed.stage(key=AFTER)
    fresh = replace(changed.stage(key="tokenize/alone-00000000000d"), config=changed.stage().config.model_copy(update={"name": "alone"}))
    assert build(taken).content_hash == build(fresh).content_hash
    for path in (taken.output_dir / "shards").iterdir():
        assert path.read_bytes() == (fresh.output_dir / "shards" / path.name).read_bytes()


def test_an_offer_says_what_the_item_says_that_takes_it(changed: Any) -> None:
    work = changed.stage(key=AFTER)
    build(work)
    manifest = CorpusManifest.model_validate_json((changed.root / changed.corpus.key / "manifest.json").read_bytes())
    groups = {group: [file for file in manifest.files if file.group == group] for group in groups_of(manifest)}
    before = ArtifactRecord.from_bytes((changed.root / BEFORE / "record.json").read_bytes())
    donor = Donor(folder=Path(BEFORE).name, manifest=entry_of(before, "manifest.json"))
    wanted = frozenset(range(len(groups)))
    found = {offer.index: offer for offer in offers(wanted, storage=work.storage, groups=groups, donors=[donor])}
    assert set(found) == {0, 2} & set(range(len(groups))), "of the changed group there is not all"
    for index, offer in found.items():
        said = ItemRecord.model_validate_json(work.storage.read(work.layout.item("group", index)))
        assert (offer.key, offer.files, offer.output) == (BEFORE, said.files, thaw(said.output))
    assert list(offers(frozenset(), storage=work.storage, groups=groups, donors=[donor])) == []
    (changed.root / BEFORE / "manifest.json").write_bytes(b"{}")
    assert list(offers(wanted, storage=work.storage, groups=groups, donors=[donor])) == []


@pytest.mark.parametrize("damage", ["shard", "manifest", "record", "missing"])
def test_a_damaged_earlier_artifact_is_not_used_and_stops_nothing(changed: Any, damage: str) -> None:
    fresh = build(replace(changed.stage(key="tokenize/alone-00000000000d"), config=changed.stage().config.model_copy(update={"name": "alone"})))
    folder = changed.root / BEFORE
    path = {
        "shard": "shards/train-g0000-00001.parquet",
        "manifest": "manifest.json",
        "record": "record.json",
        "missing": "shards/train-g0000-00002.parquet",
    }[damage]
    if damage == "missing":
        (folder / path).unlink()
    else:
        content = bytearray((folder / path).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / path).write_bytes(content)
    assert build(changed.stage(key=AFTER)).content_hash == fresh.content_hash


@pytest.mark.parametrize("setting", [{"sequence_length": 16}, {"sequences_per_shard": 3}, {"layout": "list"}])
def test_other_settings_take_nothing_over(changed: Any, setting: dict[str, Any]) -> None:
    assert build(changed.stage(key=AFTER, **setting)).summary["reused_shards"] == 0


def test_a_rebuild_of_the_same_artifact_really_rebuilds(site: Any, encoded_texts: list[str]) -> None:
    finish(site.stage(key=BEFORE))
    encoded_texts.clear()
    assert build(site.stage(key=f"{BEFORE}.r1")).summary["reused_shards"] == 0
    assert len(encoded_texts) == sum(len(texts) for texts in site.documents.values())


def test_a_file_system_without_links_gets_copies(changed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import taking_over

    def no_links(temporary: Path, path: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(taking_over, "link_exclusive", no_links)
    work = changed.stage(key=AFTER)
    assert build(work).summary["reused_shards"] > 0
    taken = work.output_dir / "shards/train-g0000-00000.parquet"
    assert taken.stat().st_nlink == 1
    assert taken.read_bytes() == (changed.root / BEFORE / "shards/train-g0000-00000.parquet").read_bytes()
