"""What is written is what is counted: parts merge to the whole, wherever row groups end and whatever was removed afterwards."""

import subprocess
import sys
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.validate.figures import distinct, refused
from tasks.validate.figures.corpus import SourceFigures, corpus_figures, merge_sources, without_removed
from tasks.validate.figures.distinct import distinct_of
from tasks.validate.figures.tally import FiguresTally
from tests.tasks.validate.figures.conftest import accepted_rows, refused_rows, tallied

DOCUMENTS = st.lists(
    st.tuples(st.text(alphabet=st.characters(codec="utf-8"), max_size=30), st.none() | st.fixed_dictionaries({"n": st.integers(-9, 9)})), max_size=20
)
PLACES = st.tuples(st.sampled_from(["a.jsonl", "b/c.csv"]), st.integers(1, 1000))
RECORDS = st.lists(PLACES, max_size=30, unique=True).flatmap(
    lambda places: st.tuples(*(st.tuples(st.just(path), st.just(row), st.sampled_from(["duplicate", "blank line"])) for path, row in places))
)


def detailed(records: Any) -> list[tuple[str, int, str, str]]:
    return [(path, row, reason, f"doc_id {row % 7:032x}" if reason == "duplicate" else "") for path, row, reason in records]


@settings(max_examples=25)
@given(DOCUMENTS, DOCUMENTS, st.integers(1, 5))
def test_figures_of_groups_merge_to_those_of_all_rows(first: Any, second: Any, step: int) -> None:
    def rows(documents: Any) -> pa.Table:
        return accepted_rows([text for text, _ in documents], extras=[extra for _, extra in documents])

    if not first or not second:
        return
    whole = rows(first + second)
    together = tallied(whole, keeps_duplicates=True)
    cut = tallied(*(whole.slice(start, step) for start in range(0, len(whole), step)), keeps_duplicates=True)
    merged = merge_sources([*tallied(rows(first), keeps_duplicates=True), *tallied(rows(second), keeps_duplicates=True)], source="prose")
    texts = [text for text, _ in first + second]
    for (figures,) in (together, cut, (merged,)):
        found = figures.splits["train"]
        assert found.lengths.total == found.columns.documents == len(texts)
        assert found.characters.total == sum(map(len, texts))
        assert distinct_of(found.hashes) == len(set(texts))
        assert (found.lengths, found.characters, found.hashes) == (
            together[0].splits["train"].lengths,
            together[0].splits["train"].characters,
            together[0].splits["train"].hashes,
        )


@settings(max_examples=25)
@given(RECORDS, RECORDS, st.integers(1, 5))
def test_quarantined_records_merge_too(first: Any, second: Any, step: int) -> None:
    records = detailed(first) + [record for record in detailed(second) if record not in detailed(first)]
    if not records:
        return
    whole = refused_rows(records)
    (together,) = tallied(whole)
    (cut,) = tallied(*(whole.slice(start, step) for start in range(0, len(whole), step)))
    parts = [tallied(refused_rows([record]))[0] for record in records]
    assert together.refused == cut.refused == merge_sources(parts, source="prose").refused
    copies = Counter(detail.removeprefix("doc_id ") for _, _, reason, detail in records if reason == "duplicate")
    assert {doc_id: cluster.removed for doc_id, cluster in together.refused.clusters.items()} == copies
    assert together.refused.unlisted == 0
    assert {reason: len(found) for reason, found in together.refused.samples.items()} == {
        reason: min(5, count) for reason, count in Counter(reason for _, _, reason, _ in records).items()
    }


@settings(max_examples=25)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=120), st.integers(1, 20))
def test_clusters_that_were_forgotten_are_within_what_is_said(copies: list[int], step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refused, "_COUNTED_CLUSTERS", 4)
        patch.setattr(refused, "LISTED_CLUSTERS", 2)
        records = [("a", row, "duplicate", f"doc_id {each:032x}") for row, each in enumerate(copies)]
        parts = [tallied(refused_rows(records[start : start + step]))[0] for start in range(0, len(records), step)]
        found = merge_sources(parts, source="prose").refused
    assert len(found.clusters) <= 2
    for each, count in Counter(f"{each:032x}" for each in copies).items():
        listed = found.clusters[each].removed if each in found.clusters else 0
        assert listed <= count <= listed + found.unlisted


def test_the_number_of_different_documents_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {i % 3000}" for i in range(6000)]
    (figures,) = tallied(accepted_rows(texts), keeps_duplicates=True)
    assert len(figures.splits["train"].hashes) == distinct.KEPT_HASHES
    assert distinct_of(figures.splits["train"].hashes) == pytest.approx(3000, rel=0.2)


def test_sources_are_told_apart_and_removed_documents_leave_the_figures() -> None:
    rows = pa.concat_tables([accepted_rows(["one", "two", "three!"]), accepted_rows(["数据"], source="zh")])
    scanned = tallied(rows)
    assert [(each.source, each.whole.lengths.total) for each in scanned] == [("prose", 3), ("zh", 1)]
    removal = tallied(accepted_rows(["one", "two"]), refused_rows([("a.jsonl", 3, "duplicate", "doc_id " + "0" * 32)]))
    figures = corpus_figures(without_removed(scanned, removal, splits=["train"]), source_names=["zh", "prose", "none"])
    assert [(each.source, each.whole.lengths.total) for each in figures.sources] == [("zh", 0), ("prose", 2), ("none", 0)]
    assert figures.whole.characters.scripts == {"Latin": 6}
    assert figures.refused.clusters["0" * 32].removed == 1
    assert SourceFigures.model_validate_json(figures.sources[1].model_dump_json()) == figures.sources[1]


@pytest.mark.slow
def test_the_first_rows_do_not_import_pandas() -> None:
    """It would take a third of a second of every item."""
    code = """
import sys
from tasks.validate.corpus_files import string_array
from tasks.validate.figures.tally import FiguresTally
import numpy as np, pyarrow as pa
one = pa.Array.from_buffers(pa.int64(), 1, [None, pa.py_buffer(np.array([1]))])
names = ("doc_id", "source", "path", "text", "reason", "detail", "excerpt")
texts = {name: string_array([b"a" * 32]) for name in names} | {"extra": string_array([b'{"n": 1}'])}
table = pa.table(texts | {"row": one})
tally = FiguresTally(keeps_duplicates=True)
tally.accept(table, split="train")
tally.refuse(table)
tally.refuse(pa.table(texts | {"row": one, "reason": string_array([b"duplicate"])}))
assert tally.figures()[0].refused.clusters
print("pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_nothing_accepted_and_nothing_refused_is_no_figure() -> None:
    assert FiguresTally(keeps_duplicates=False).figures() == ()
