"""The stage as a whole: shards give the documents back, and are the same bytes whoever made them and however often they were killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from cluster.unfinished import remove_unfinished
from schemas.errors import ConfigError, InputError, VerificationError
from schemas.manifest import SPLITS, ShardManifest, Split
from tasks.tokenize.build import build
from tasks.tokenize.shard_reader import ShardReader
from tasks.tokenizer.engine import HuggingFaceEngine
from tests.fakes.child_process import running
from tests.fakes.in_process_work import doc_id, write_corpus

SITE = Any  # the fixture's class lives in conftest, which is not importable


def decoded(site: SITE, manifest: ShardManifest, folder: Path, split: Split) -> dict[int, list[str]]:
    """Returns the documents of every group, decoded from its shards."""
    engine = HuggingFaceEngine((site.root / site.tokenizer.key / "tokenizer.json").read_bytes())
    found: dict[int, list[str]] = {}
    reader, row = ShardReader(manifest, folder=folder, split=split), 0
    for group in sorted({shard.group for shard in manifest.of_split(split)}):
        stream: list[int] = []
        for shard in (shard for shard in manifest.of_split(split) if shard.group == group):
            stream += reader.rows(np.arange(row, row + shard.rows)).reshape(-1)[: shard.tokens].tolist()
            row += shard.rows
        ends = [position for position, token in enumerate(stream) if token == manifest.end_of_text_id]
        starts = [0, *(end + 1 for end in ends)]
        found[group] = [engine.decode(stream[start:end]) for start, end in zip(starts, ends, strict=False)]
        assert ends[-1] == len(stream) - 1
    return found


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


@pytest.mark.parametrize("layout", ["fixed", "list"])
def test_the_shards_give_every_document_back(site: SITE, layout: str) -> None:
    manifest, folder = site.manifest(layout=layout)
    for split in SPLITS:
        expected = {group: list(texts) for (group, of), texts in site.documents.items() if of == split}
        assert decoded(site, manifest, folder, split) == expected
    assert [shard.file.path for shard in manifest.of_split("train")][:2] == ["shards/train-g0000-00000.parquet", "shards/train-g0000-00001.parquet"]
    for (group, split), texts in site.documents.items():
        shards = [shard for shard in manifest.of_split(split) if shard.group == group]
        assert sum(shard.text_bytes for shard in shards) == sum(len(text.encode()) for text in texts)
        assert all(shard.rows == 16 for shard in shards[:-1])


@pytest.fixture(scope="module")
def lasting_site(tmp_path_factory: pytest.TempPathFactory, site_at: Any) -> SITE:
    """A site that all examples of a property share; they bring their own documents."""
    return site_at(tmp_path_factory.mktemp("lasting"))


@given(
    texts=st.lists(st.text(max_size=80), min_size=1, max_size=12),
    length=st.integers(8, 24),
    rows=st.integers(1, 9),
    layout=st.sampled_from(["fixed", "list"]),
)
@settings(max_examples=25)
def test_any_documents_come_back(lasting_site: SITE, texts: list[str], length: int, rows: int, layout: str) -> None:
    number = len(list((lasting_site.root / "validate").iterdir()))
    documents = {(7, "train"): texts}
    corpus = write_corpus(lasting_site.root, documents, key=f"validate/any{number}-000000000000")
    site = replace(lasting_site, corpus=corpus, documents=documents)
    settings_of_example = {"sequence_length": length, "sequences_per_shard": rows, "layout": layout}
    manifest, folder = site.manifest(key=f"tokenize/any{number}-000000000000", shadow_check_documents=2, **settings_of_example)
    assert decoded(site, manifest, folder, "train") == {7: texts}


def test_both_engines_make_the_same_bytes_and_the_same_content_hash(site: SITE) -> None:
    fast, slow = site.stage(engine="gigatoken", key="tokenize/fast-000000000000"), site.stage(engine="huggingface", key="tokenize/slow-000000000000")
    first, second = build(fast), build(slow)
    assert shard_bytes(fast.output_dir) == shard_bytes(slow.output_dir)
    assert first.content_hash == second.content_hash
    assert (first.summary["engine"], second.summary["engine"]) == ("gigatoken", "huggingface")
    assert first.summary["shadow_checked_documents"] > 0


def test_the_summary_and_the_metadata_say_what_the_shards_are(site: SITE) -> None:
    import pyarrow.parquet as pq

    work = site.stage()
    draft = build(work)
    manifest = ShardManifest.model_validate_json((work.output_dir / "manifest.json").read_bytes())
    assert draft.summary["tokens"] == {split: manifest.num_tokens(split) for split in SPLITS}
    assert (manifest.vocab_size, manifest.dtype, manifest.tokenizer_hash) == (320, "uint16", site.tokenizer.content_hash)
    shard = manifest.of_split("validation")[-1]
    facts = json.loads(pq.read_metadata(work.output_dir / shard.file.path).metadata[b"headrace"])
    assert (facts["split"], facts["group"], facts["rows"], facts["last_row_tokens"]) == ("validation", 1, shard.rows, shard.last_row_tokens)
    assert facts["source"]["xxh3"] == shard.source_xxh3
    assert facts["tokenizer_hash"] == manifest.tokenizer_hash
    assert "engine" not in facts


@pytest.mark.parametrize("packing", [{}, {"packing": "best_fit", "boundaries": True}], ids=["concatenate", "best-fit"])
def test_an_interrupted_item_goes_on_and_keeps_what_is_published(site: SITE, packing: dict[str, Any]) -> None:
    calm = site.stage(key="tokenize/calm-000000000000", **packing)
    calm_draft = build(calm)
    work = site.stage(**packing)
    build(work)
    shards = work.output_dir / "shards"
    kept = shards / "train-g0000-00000.parquet"
    kept_inode = kept.stat().st_ino
    (shards / "train-g0000-00001.parquet").rename(shards / ".tmp-e000000-4242-train-g0000-00001.parquet")  # killed before the link
    (shards / ".tmp-e000000-4242-train-g0000-00002.parquet").write_bytes(b"PAR1 half a shard")
    (work.output_dir / "items" / "group-000000.json").unlink()
    (work.output_dir / "manifest.json").unlink()
    again = site.stage(epoch=1, **packing)
    draft = build(again)
    assert again.items_run == [0]  # the other group has its record
    assert draft.content_hash == calm_draft.content_hash
    assert kept.stat().st_ino == kept_inode
    remove_unfinished(work.output_dir)
    assert shard_bytes(work.output_dir) == shard_bytes(calm.output_dir)


def test_a_shard_that_is_there_with_other_bytes_is_named_and_not_replaced(site: SITE) -> None:
    work = site.stage()
    path = work.output_dir / "shards" / "train-g0001-00000.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a shard")
    with pytest.raises(VerificationError, match=r"train-g0001-00000\.parquet: is there with other bytes[\s\S]*delete this file"):
        build(work)
    assert path.read_bytes() == b"not a shard"
    assert not (work.output_dir / "manifest.json").exists()
    assert not [name for name in shard_bytes(work.output_dir) if name.startswith(".tmp-")]
    path.unlink()
    build(site.stage(epoch=1))


@pytest.mark.slow
def test_kill_9_at_any_moment_and_a_rerun_give_the_calm_bytes(site: SITE) -> None:
    calm = site.stage(key="tokenize/calm-000000000000", sequences_per_shard=1, sequence_length=64)
    build(calm)
    work = site.stage(key="tokenize/killed-000000000000", sequences_per_shard=1, sequence_length=64)
    options = _options_of(work)
    for epoch in range(3):
        work.epoch = epoch
        path = work.root / f"spec-{epoch}.json"
        path.write_text(work.task_spec("group", options=options).model_dump_json())
        argv = [sys.executable, "-m", "tasks.tokenize.job", "--spec", str(path), "--index", "0"]
        with running(*argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            _wait_for(lambda epoch=epoch: len(list((work.output_dir / "shards").glob("train-*"))) > 15 * (epoch + 1), process)
            process.kill()
    work.epoch = 3
    build(work)
    remove_unfinished(work.output_dir)
    assert shard_bytes(work.output_dir) == shard_bytes(calm.output_dir)
    first, second = ((folder / "manifest.json").read_bytes() for folder in (calm.output_dir, work.output_dir))
    assert first == second


def _options_of(work: Any) -> Mapping[str, Any]:
    """Returns the options that `build` gives its items."""
    seen: list[Mapping[str, Any]] = []

    class Stop(Exception):  # noqa: N818
        pass

    def catch(plan: Any, *, module: str, options: Mapping[str, Any], **_: Any) -> Any:
        seen.append(options)
        raise Stop

    work.run_array, restore = catch, work.run_array
    with pytest.raises(Stop):
        build(work)
    work.run_array = restore
    return seen[0]


def _wait_for(reached: Any, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not reached() and process.poll() is None:
        assert time.monotonic() < deadline
        os.sched_yield()


def test_a_tokenizer_that_gigatoken_refuses_is_encoded_by_hugging_face(tmp_path: Path, site_at: Any) -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        ["the water wheel flows"] * 20, trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[SEP]", "[UNK]"], show_progress=False)
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    site = site_at(tmp_path / "site", tokenizer={"path": str(tmp_path / "tokenizer.json"), "end_of_text": "[SEP]"})
    work = site.stage()
    draft = build(work)
    manifest = ShardManifest.model_validate_json((work.output_dir / "manifest.json").read_bytes())
    assert manifest.engine == "huggingface" == draft.summary["engine"]
    assert any("WordPiece" in note for note in work.notes)
    expected = sum(len(encoding.ids) + 1 for encoding in tokenizer.encode_batch(site.documents[(0, "train")], add_special_tokens=False))
    assert sum(shard.tokens for shard in manifest.of_split("train") if shard.group == 0) == expected
    with pytest.raises(ConfigError, match=r"tokenization\.engine = 'gigatoken'"):
        build(site.stage(engine="gigatoken", key="tokenize/other-000000000000"))


@pytest.mark.slow
def test_a_vocabulary_above_65536_is_stored_as_uint32(tmp_path: Path, site_at: Any) -> None:
    base = site_at(tmp_path / "base")
    description = json.loads((base.root / base.tokenizer.key / "tokenizer.json").read_bytes())
    vocabulary: dict[str, int] = description["model"]["vocab"]
    for number in range(len(vocabulary), 70_000):
        vocabulary[f"unused{number}"] = number
    added = {"id": 70_000, "content": "water", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    description["added_tokens"].append(added)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    site = site_at(tmp_path / "site", tokenizer={"path": str(tmp_path / "tokenizer.json")})
    manifest, folder = site.manifest()
    assert (manifest.dtype, manifest.vocab_size) == ("uint32", 70_001)
    rows = ShardReader(manifest, folder=folder, split="train").rows(np.arange(manifest.num_sequences("train")))
    assert rows.max() == 70_000
    assert decoded(site, manifest, folder, "validation")[1] == list(site.documents[(1, "validation")])


def test_chinese_documents_come_back(tmp_path: Path, site_at: Any) -> None:
    texts = ["水车是利用水流的动力来工作的机械。", "磨坊里的石磨把谷物磨成面粉,水渠把河水引到水车上。", "第三个文件\n\n有两段。"] * 9
    site = site_at(tmp_path / "site", documents={(0, "train"): texts}, tokenizer={"pattern": "qwen2"})
    manifest, folder = site.manifest()
    assert manifest.engine == "gigatoken"
    assert decoded(site, manifest, folder, "train") == {0: texts}


def test_a_corpus_without_training_documents_is_refused(site: SITE) -> None:
    corpus = write_corpus(site.root, {(0, "validation"): ["only this"]}, key="validate/other-000000000000")
    with pytest.raises(InputError, match="no training documents"):
        build(replace(site, corpus=corpus).stage())


def test_a_shard_too_large_for_a_page_is_refused_before_any_work(site: SITE) -> None:
    work = site.stage(sequence_length=1 << 20, sequences_per_shard=2048)
    with pytest.raises(ConfigError, match=r"tokenization\.sequences_per_shard = 2048.*nearest valid: 1023"):
        build(work)
    assert work.items_run == []


def test_a_damaged_tokenizer_is_named(site: SITE) -> None:
    path = site.root / site.tokenizer.key / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b'"water"', b'"wader"') + b" ")
    with pytest.raises(VerificationError, match=r"tokenizer\.json"):
        build(site.stage())


def test_a_corpus_file_rewritten_after_validation_is_refused(site: SITE) -> None:
    path = site.root / site.corpus.key / "accepted/g0001-train.parquet"
    path.write_bytes((site.root / site.corpus.key / "accepted/g0000-train.parquet").read_bytes())
    with pytest.raises(VerificationError, match=r"g0001-train\.parquet"):
        build(site.stage())


def test_engines_that_disagree_stop_the_stage_and_name_the_document(site: SITE, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.tokenizer import engine

    encode = engine.GigatokenEngine.encode_column

    def wrong(self: engine.GigatokenEngine, texts: Any) -> engine.Encoded:
        encoded = encode(self, texts)
        encoded.ids[encoded.offsets[3]] ^= 1
        return encoded

    monkeypatch.setattr(engine.GigatokenEngine, "encode_column", wrong)
    with pytest.raises(VerificationError, match=f"document {doc_id(site.documents[(0, 'train')][3])}: token 0 is"):
        build(site.stage(shadow_check_documents=120))
