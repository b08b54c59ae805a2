"""The accepted corpus is read whole, in order, in bounded batches, and only when its bytes are those that were accepted."""

from pathlib import Path

import pytest

from schemas.artifact import FileEntry
from schemas.errors import VerificationError
from tasks.tokenizer import corpus as corpus_module
from tasks.tokenizer.corpus import Corpus, open_corpus
from tests.fakes.in_process_work import write_corpus

TEXTS = [f"document {number} " + "x" * (number % 50) for number in range(1000)]


def manifest_entry(files: tuple[FileEntry, ...]) -> FileEntry:
    return next(file for file in files if file.path == "manifest.json")


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    record = write_corpus(tmp_path, {(0, "train"): TEXTS[:600], (1, "train"): TEXTS[600:], (1, "validation"): ["held out"]})
    return open_corpus(tmp_path / record.key, manifest=manifest_entry(record.files))


def test_documents_come_whole_and_in_order_whatever_the_batch(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "BATCH_BYTES", 3000)
    batches = list(corpus.batches(corpus.manifest.files[0]))
    assert len(batches) > 3
    assert [text for batch in batches for text in batch.texts] == TEXTS[:600]
    assert all(batch.sizes == [len(text.encode()) for text in batch.texts] for batch in batches)


def test_a_sample_of_everything_is_everything(corpus: Corpus) -> None:
    assert [text for batch in corpus.sample("train", max_bytes=10**9) for text in batch.texts] == TEXTS


def test_a_sample_is_about_as_large_as_asked_for_and_always_the_same(corpus: Corpus) -> None:
    total = sum(len(text.encode()) for text in TEXTS)
    sample = [text for batch in corpus.sample("train", max_bytes=total // 4) for text in batch.texts]
    assert total // 8 < sum(len(text.encode()) for text in sample) < total // 2
    assert sample == [text for batch in corpus.sample("train", max_bytes=total // 4) for text in batch.texts]
    assert sample != TEXTS[: len(sample)]


def test_a_sample_is_never_empty_and_reads_few_files(corpus: Corpus) -> None:
    batches = list(corpus.sample("train", max_bytes=1))
    assert sum(len(batch.texts) for batch in batches) == 1
    assert list(corpus.sample("test", max_bytes=100)) == []


def test_a_flipped_byte_or_a_missing_file_is_named(tmp_path: Path, corpus: Corpus) -> None:
    file = corpus.manifest.files[0]
    path = corpus.folder / file.file.path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match=r"g0000-train\.parquet.*damaged"):
        list(corpus.batches(file))
    path.write_bytes(data[:-1])
    with pytest.raises(VerificationError, match="bytes, the record says"):
        list(corpus.batches(file))
    path.unlink()
    with pytest.raises(VerificationError, match="No such file"):
        list(corpus.batches(file))


def test_a_manifest_other_than_the_recorded_one_is_refused(tmp_path: Path) -> None:
    record = write_corpus(tmp_path, {(0, "train"): TEXTS})
    (tmp_path / record.key / "manifest.json").write_text("{}")
    with pytest.raises(VerificationError, match=r"manifest\.json"):
        open_corpus(tmp_path / record.key, manifest=manifest_entry(record.files))
