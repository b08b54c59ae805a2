"""Chinese text in GB18030, from raw files to ids and back: not a character is lost or changed on the way."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas.config import RunConfig
from schemas.manifest import SPLITS, CorpusManifest, ShardManifest
from schemas.stage import Stage
from tasks.tokenize.build import build as build_tokens
from tasks.tokenize.shard_reader import ShardReader
from tasks.tokenizer.build import build as build_tokenizer
from tasks.tokenizer.engine import HuggingFaceEngine
from tasks.validate.build import build
from tests.fakes.in_process_work import InProcessWork, commit, config_with

README = Path(__file__).parents[3] / "README.zh-CN.md"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def paragraphs() -> list[str]:
    """Returns real Chinese paragraphs, all different, with characters that GBK lacks: 㐀 and 𠮷 take four bytes."""
    found = dict.fromkeys(part for part in README.read_text(encoding="utf-8").split("\n\n") if not part.isascii())
    return [*found, *(f"第{number}页：㐀、𠮷与“水轮”——{number * 7919 % 10_007}。" for number in range(120))]


def write_raw(folder: Path, texts: list[str]) -> None:
    """Writes texts as files of every kind that holds text, in GB18030."""
    folder.mkdir()
    *texts, second, first = sorted(texts, key=lambda text: len(text.encode()) - len(text))
    half = len(texts) // 2
    lines = "".join(json.dumps({"text": text, "题": "甲"}, ensure_ascii=False) + "\n" for text in texts[:half])
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode("gb18030")))
    rows = "".join('"' + text.replace('"', '""') + '"\n' for text in texts[half:])
    (folder / "b.csv").write_bytes(("text\n" + rows).encode("gb18030"))
    for index, text in enumerate((first, second)):  # a whole file needs enough Chinese to be told by
        (folder / f"{index}.txt").write_bytes(text.encode("gb18030"))


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["auto", "gb18030"])
def test_chinese_text_goes_through_validation_and_tokens_and_comes_back(
    tmp_path: Path, recipe: Callable[..., RunConfig], work_on: Callable[..., Any], encoding: str
) -> None:
    texts = paragraphs()
    write_raw(tmp_path / "raw", texts)
    work = work_on(recipe({"path": str(tmp_path / "raw"), "encoding": encoding}, splits={"validation": 0.1, "test": 0.1}))
    corpus = commit(work.root, Stage.VALIDATE, build(work), key=work.key)
    manifest = CorpusManifest.model_validate_json((work.output_dir / "manifest.json").read_bytes())
    accepted = [row for file in manifest.files for row in pq.read_table(work.output_dir / file.file.path).to_pylist()]
    assert sorted(row["text"] for row in accepted) == sorted(texts)
    assert json.loads(next(row["extra"] for row in accepted if row["path"] == "a.jsonl.gz")) == {"题": "甲"}
    assert {each.encoding for each in manifest.encodings} == {"gb18030"}
    assert manifest.read == manifest.accepted == len(texts)

    config = config_with(
        tokenizer={"vocab_size": 600, "pattern": "qwen2", "max_tokens_per_word": 50, "min_bytes_per_token": 0.1},
        tokenization={"sequence_length": 64, "sequences_per_shard": 16},
    )
    trained = InProcessWork(work.root, Stage.TOKENIZER, config, {Stage.VALIDATE: corpus})
    tokenizer = commit(work.root, Stage.TOKENIZER, build_tokenizer(trained), key=trained.key)
    cut = InProcessWork(work.root, Stage.TOKENIZE, config, {Stage.VALIDATE: corpus, Stage.TOKENIZER: tokenizer})
    build_tokens(cut)
    shards = ShardManifest.model_validate_json((cut.output_dir / "manifest.json").read_bytes())
    engine = HuggingFaceEngine((trained.output_dir / "tokenizer.json").read_bytes())
    decoded = []
    for split in SPLITS:
        reader = ShardReader(shards, folder=cut.output_dir, split=split)
        ids = reader.rows(np.arange(shards.num_sequences(split))).reshape(-1)[: shards.num_tokens(split)]
        decoded += documents_of(ids, engine=engine, end_of_text=shards.end_of_text_id)
    assert sorted(decoded) == sorted(texts)


def documents_of(ids: np.ndarray, *, engine: HuggingFaceEngine, end_of_text: int) -> list[str]:
    """Returns the texts of one group's ids, each of which is ended by a token."""
    ends = np.flatnonzero(ids == end_of_text)
    return [engine.decode(document[:-1].tolist()) for document in np.split(ids, ends + 1)[:-1]]
