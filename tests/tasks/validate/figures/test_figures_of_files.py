"""The figures of a corpus are those of the files that are there in the end: groups, duplicates across them and a restart change nothing."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from schemas.config import RunConfig
from schemas.manifest import SPLITS
from tasks.validate import judge as judging
from tasks.validate.build import build
from tasks.validate.checks import Verdict
from tasks.validate.figures.corpus import CorpusFigures, corpus_figures
from tasks.validate.figures.refused import LISTED_CLUSTERS
from tasks.validate.figures.sampling import Sampling, chosen, sampling_of
from tasks.validate.figures.tally import FiguresTally
from tasks.validate.judge import Judgement
from tasks.validate.stats import CorpusStats
from tests.tasks.validate.figures.conftest import accepted_rows

Recipe = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def lenient_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for Great Expectations."""

    def judge(_: CorpusStats, *, docs_dir: Path, **__: Any) -> Judgement:
        (docs_dir / "index.html").write_text("judged")
        return Judgement(Verdict.PASS, 1, ())

    monkeypatch.setattr(judging, "judge", judge)
    monkeypatch.setattr(judging, "preload", lambda: None)


def write_sources(folder: Path) -> list[dict[str, str]]:
    """Two sources in many files, with duplicates within files, across files and across sources."""
    for source, step in (("web", 7), ("notes", 11)):
        (folder / source).mkdir(parents=True)
        for part in range(5):
            records = [{"text": f"text {(index * step) % 120} 水轮 é", "n": index % 9, "label": source} for index in range(part, 200, 5)]
            lines = [json.dumps(record) for record in records] + ["{broken", '{"text": ""}']
            (folder / source / f"part-{part}.jsonl").write_text("\n".join(lines) + "\n")
    return [{"path": str(folder / source), "name": source} for source in ("web", "notes")]


def figures_of_files(folder: Path, *, names: Sequence[str], sampling: Sampling) -> CorpusFigures:
    """Counts all files of an artifact, one after the other."""
    parts = []
    for path in sorted(folder.glob("*/*.parquet")):
        tally = FiguresTally(sampling, keeps_duplicates=False)
        rows = pq.read_table(path)
        if path.parent.name == "quarantine":
            tally.refuse(rows)
        else:
            tally.accept(rows, split=next(split for split in SPLITS if split in path.name))
        parts += tally.figures()
    return corpus_figures(parts, source_names=names, sampling=sampling)


@pytest.mark.parametrize("group_bytes", [10**9, 3000])
def test_figures_are_those_of_the_files(tmp_path: Path, recipe: Recipe, work_on: Callable[..., Any], group_bytes: int) -> None:
    sources = write_sources(tmp_path / "raw")
    work = work_on(recipe(*sources, group_bytes=group_bytes, splits={"validation": 0.2, "test": 0.2}))
    build(work)
    stats = CorpusStats.model_validate_json((work.output_dir / "stats.json").read_bytes())
    found, wanted = stats.figures, figures_of_files(work.output_dir, names=("web", "notes"), sampling=Sampling())
    assert found is not None
    for source, other in zip(found.sources, wanted.sources, strict=True):
        assert source.refused == other.refused
        for split in SPLITS:
            one, two = source.splits[split], other.splits[split]
            assert (one.lengths, one.characters) == (two.lengths, two.characters)
            assert one.columns.columns.keys() == two.columns.columns.keys()
            for name, column in one.columns.columns.items():
                assert (column.present, column.values) == (two.columns.columns[name].present, two.columns.columns[name].values)
    assert found.whole.lengths.total == stats.total.num_accepted == 120
    listed = [cluster.removed for cluster in found.refused.clusters.values()]
    assert len(listed) == LISTED_CLUSTERS
    assert sum(listed) < stats.total.reasons["duplicate"] <= sum(listed) + 120 * found.refused.unlisted
    assert {name: len(samples) for name, samples in found.refused.samples.items()} == {"duplicate": 5, "empty text": 5, "invalid JSON": 5}


def test_large_corpora_are_looked_at_in_part() -> None:
    assert sampling_of(1 << 20) == Sampling()
    assert sampling_of(8 << 20) == Sampling(text=1, columns=4)
    assert sampling_of((8 << 20) + 1) == Sampling(text=2, columns=8)
    assert sampling_of(10**15) == Sampling(text=64, columns=64)
    assert sampling_of(0) == Sampling()


def test_a_sample_is_a_part_of_a_larger_one_and_about_as_large_as_said() -> None:
    (rows,) = accepted_rows([f"document {index}" for index in range(4000)]).combine_chunks().to_batches()
    kept: set[str] = set(rows.column("doc_id").to_pylist())
    for one_in in (1, 2, 8, 64):
        sample = set(chosen(rows, one_in=one_in).column("doc_id").to_pylist())
        assert sample <= kept
        assert abs(len(sample) - 4000 / one_in) < 4 * (4000 / one_in) ** 0.5
        kept = sample
