"""Texts in two groups: the first stays, counts stay exact, and only the groups concerned are rewritten."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.storage import hash_file
from schemas.config import RunConfig
from schemas.manifest import AcceptedFile, CorpusGroup, InputFile
from tasks.validate.duplicates import REPEATS_NAME, RemovalOutput, find_repeats, remove_repeats, without_repeats
from tasks.validate.scan import ScanOutput, scan_group
from tasks.validate.stats import corpus_stats
from tests.tasks.validate.conftest import temporary_in

SPLITS = {"validation": 0.3, "test": 0.3}


class Corpus:
    """Groups of given texts, scanned one by one as jobs do."""

    def __init__(self, folder: Path, groups: list[list[str]]) -> None:
        self.folder = folder / "artifact"
        corpus = RunConfig.model_validate(
            {
                "name": "tested",
                "corpus": {"sources": [str(folder)], "splits": SPLITS},
                "model": {"config": {"model_type": "llama"}},
                "training": {"steps": 2000},
            }
        ).corpus
        self.scans: list[ScanOutput] = []
        for index, texts in enumerate(groups):
            path = folder / f"{index}.jsonl"
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            file = InputFile(source="source-0", path=str(path), relative_path=path.name, size=path.stat().st_size, xxh3=hash_file(path))
            group = CorpusGroup(index=index * 3, inputs=(file,))  # indexes have gaps
            self.scans.append(scan_group(group, corpus=corpus, output_dir=self.folder, temporary=temporary_in(self.folder), report=lambda _: None))

    def deduplicate(self) -> tuple[list[ScanOutput], dict[int, RemovalOutput]]:
        files = [file for scan in self.scans for file in scan.accepted]
        repeats = find_repeats(files, output_dir=self.folder, temporary=temporary_in(self.folder), scratch_dir=self.folder, threads=1)
        removals = {}
        for scan in self.scans:
            if scan.group in repeats.groups:
                removals[scan.group] = remove_repeats(scan.group, scan.accepted, output_dir=self.folder, temporary=temporary_in(self.folder))
        return [without_repeats(scan, removals.get(scan.group)) for scan in self.scans], removals

    def texts(self, files: tuple[AcceptedFile, ...]) -> list[str]:
        rows = [row for file in files for row in pq.read_table(self.folder / file.file.path).to_pylist()]
        return [row["text"] for row in sorted(rows, key=lambda row: row["row"])]


def test_the_first_of_equal_texts_stays_and_the_others_are_quarantined(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [[f"a{i}" for i in range(20)], [f"b{i}" for i in range(20)] + ["a3", "a7"], ["a3", "b5", "c"]])
    groups, removals = corpus.deduplicate()
    assert corpus.texts(groups[0].accepted) == [f"a{i}" for i in range(20)]
    assert corpus.texts(groups[1].accepted) == [f"b{i}" for i in range(20)]
    assert corpus.texts(groups[2].accepted) == ["c"]
    assert sorted(removals) == [3, 6]
    (quarantined,) = [pq.read_table(corpus.folder / removals[6].quarantine.path).to_pylist()]
    assert sorted((row["path"], row["row"], row["reason"], row["excerpt"]) for row in quarantined) == [
        ("2.jsonl", 1, "duplicate", "a3"),
        ("2.jsonl", 2, "duplicate", "b5"),
    ]


def test_counts_are_those_of_the_files_that_are_left(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [[f"text {i}" for i in range(100)], [f"text {i} é" if i % 3 else f"text {i}" for i in range(100)]])
    groups, _ = corpus.deduplicate()
    total = corpus_stats((part for group in groups for part in group.stats), source_names=("source-0",)).total
    left = [text for group in groups for text in corpus.texts(group.accepted)]
    assert (total.read, total.num_accepted, total.reasons) == (200, len(left), {"duplicate": 34})
    assert len(set(left)) == len(left) == 166
    assert (total.lengths.chars, total.lengths.text_bytes) == (sum(map(len, left)), sum(len(text.encode()) for text in left))
    assert (total.lengths.min_chars, total.lengths.max_chars) == (min(map(len, left)), max(map(len, left)))
    for file in (file for group in groups for file in group.accepted):
        assert file.documents == pq.read_metadata(corpus.folder / file.file.path).num_rows
        assert file.file.xxh3 == hash_file(corpus.folder / file.file.path)


def test_only_the_splits_concerned_are_rewritten(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [["a"], ["a", *(f"b{i}" for i in range(30))]])
    before = {file.split: file for file in corpus.scans[1].accepted}
    groups, removals = corpus.deduplicate()
    after = {file.split: file for file in groups[1].accepted}
    (split,) = removals[3].splits
    assert after[split].file.path != before[split].file.path
    assert {other: file for other, file in after.items() if other != split} == {other: file for other, file in before.items() if other != split}


def test_a_group_of_which_nothing_is_left_has_no_file(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [["a", "b"], ["b", "a"]])
    groups, _ = corpus.deduplicate()
    assert groups[1].accepted == ()
    assert groups[1].stats[0].num_accepted == 0


def test_a_corpus_without_repeats_stays_as_it_is(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, [["a"], ["b"]])
    groups, removals = corpus.deduplicate()
    assert (groups, removals) == (corpus.scans, {})
    assert not (corpus.folder / REPEATS_NAME).exists()


def test_repeats_that_a_scan_forgot_are_found_within_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.validate.scan.REMEMBERED_DOCUMENTS", 10)
    corpus = Corpus(tmp_path, [[f"text {i % 15}" for i in range(40)]])
    assert corpus.scans[0].may_repeat
    groups, _ = corpus.deduplicate()
    assert corpus.texts(groups[0].accepted) == [f"text {i}" for i in range(15)]
    stats: Any = groups[0].stats[0]
    assert (stats.read, stats.num_accepted, stats.num_quarantined) == (40, 15, 25)


def test_the_outcome_does_not_depend_on_the_run(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    outcomes = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        outcomes.append(Corpus(tmp_path / name, [[f"a{i}" for i in range(50)], [f"a{i}" for i in range(25, 75)]]).deduplicate())
    assert outcomes[0] == outcomes[1]
