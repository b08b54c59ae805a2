"""One group, end to end on real files: nothing is lost, nothing is half-made, and equal inputs give equal bytes."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage import hash_file
from schemas.config import RunConfig
from schemas.errors import InputError
from tasks.validate import scan as scanning
from tasks.validate.grouping import plan_groups
from tasks.validate.sources import plan_inputs
from tasks.validate.stats import corpus_stats
from tests.fakes.plain_hashes import PlainHashes

Recipe = Callable[..., RunConfig]


def test_documents_carry_identity_place_and_other_columns(scan: Any, recipe: Recipe, write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl("a.jsonl", {"text": "one", "id": 1, "tags": ["x"]}, {"text": "two"})
    scanned = scan(recipe({"path": str(path), "name": "prose"}))
    assert [{key: row[key] for key in ("source", "path", "row", "text")} for row in scanned.accepted] == [
        {"source": "prose", "path": "a.jsonl", "row": 1, "text": "one"},
        {"source": "prose", "path": "a.jsonl", "row": 2, "text": "two"},
    ]
    assert [row["doc_id"] for row in scanned.accepted] == [xxhash.xxh3_128_hexdigest(text) for text in (b"one", b"two")]
    assert [row["extra"] and json.loads(row["extra"]) for row in scanned.accepted] == [{"id": 1, "tags": ["x"]}, None]


def test_every_format_gives_the_same_documents(scan: Any, recipe: Recipe, tmp_path: Path, write_jsonl: Any, write_parquet: Any) -> None:
    texts = ["first", "zweites é", '第三, "quoted"\nline']
    jsonl = write_jsonl("a.jsonl", *({"text": text} for text in texts))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl.read_bytes()))
    (tmp_path / "a.csv").write_text("text\n" + "".join('"' + text.replace('"', '""') + '"\n' for text in texts))
    folder = tmp_path / "folder"
    folder.mkdir()
    for index, text in enumerate(texts):
        (folder / f"{index}.txt").write_text(text)
    paths = [jsonl, tmp_path / "a.jsonl.gz", tmp_path / "a.csv", write_parquet("a.parquet", {"text": texts}), folder]
    assert all(scan(recipe(str(path))).texts == texts for path in paths)


def test_refused_records_keep_file_row_reason_and_an_excerpt(scan: Any, recipe: Recipe, write_jsonl: Any) -> None:
    path = write_jsonl(
        "a.jsonl",
        {"text": "good"},
        b'{"text": "caf\xe9"}',
        {"text": None},
        {"text": {"a": None}},
        {"text": " "},
        b"",
        {"text": "a\0"},
        {"text": "good"},
        b"x" * 500,
    )
    scanned = scan(recipe(str(path)))
    assert scanned.refused == [
        (2, "invalid UTF-8"),
        (3, "null text"),
        (4, "wrong type"),
        (5, "blank text"),
        (6, "blank line"),
        (7, "NUL character"),
        (8, "duplicate"),
        (9, "invalid JSON"),
    ]
    assert {row["path"] for row in scanned.quarantined} == {"a.jsonl"}
    assert scanned.quarantined[0]["excerpt"] == '{"text": "caf\\xe9"}'
    assert scanned.quarantined[6]["excerpt"] == "good"
    assert len(scanned.quarantined[-1]["excerpt"]) == 200
    assert scanned.texts == ["good"]
    assert scanned.output.faults == ()


def test_columns_nested_too_deeply_to_store_cost_their_record_but_not_its_copies(scan: Any, recipe: Recipe, write_jsonl: Any) -> None:
    deep = b'{"text": "a", "deep": ' + b"[" * 400 + b"]" * 400 + b"}"
    scanned = scan(recipe(str(write_jsonl("a.jsonl", deep, {"text": "a"}))))
    assert scanned.refused == [(1, "wrong type")]
    assert [row["row"] for row in scanned.accepted] == [2]


def test_a_failed_write_leaves_nothing_behind(scan: Any, recipe: Recipe, write_jsonl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        scan(recipe(str(write_jsonl("a.jsonl", {"text": "a"}, {"text": None}))))
    assert not list(tmp_path.rglob("*g0000*"))


def test_empty_files_are_quarantined_as_files(scan: Any, recipe: Recipe, tmp_path: Path, write_parquet: Any) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.jsonl", "b.csv", "c.py", "d.jsonl.gz"):
        (folder / name).write_bytes(b"")
    (folder / "e.txt").write_text("text")
    scanned = scan(recipe(str(folder)))
    assert scanned.refused == [(0, "empty file")] * 4
    assert scanned.read == 5


def test_a_truncated_gz_keeps_what_was_read_and_adds_one_quarantined_record(scan: Any, recipe: Recipe, write_jsonl: Any) -> None:
    plain = write_jsonl("a.jsonl", *({"text": f"document {i} {i * 7919 % 10_007}"} for i in range(3000)))
    damaged = plain.with_name("b.jsonl.gz")
    data = gzip.compress(plain.read_bytes())
    damaged.write_bytes(data[: len(data) // 2])
    scanned = scan(recipe(str(damaged)))
    assert scanned.texts == [f"document {i} {i * 7919 % 10_007}" for i in range(len(scanned.texts))]
    assert scanned.refused == [(len(scanned.texts) + 1, "truncated file")]
    assert scanned.read == len(scanned.texts) + 1 > 1000
    assert scanned.output.stats[0].unreadable_bytes == 0


def test_a_file_of_which_nothing_can_be_read_counts_with_its_bytes(scan: Any, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.parquet").write_bytes(b"nothing of the kind" * 10)
    (tmp_path / "in/b.txt").write_bytes(b"text")
    (stats,) = scan(recipe(str(tmp_path / "in"))).output.stats
    assert (stats.unreadable_bytes, stats.raw_bytes) == (190, 194)


@pytest.mark.parametrize(
    ("columns", "rules", "column"),
    [
        ({"body": ["a", "b"]}, {}, "text"),
        ({"text": [1, 2]}, {}, "text"),
        ({"text": ["a", "b"]}, {"required_columns": {"lang": "string"}}, "lang"),
        ({"text": ["a", "b"], "lang": [1, 2]}, {"required_columns": {"lang": "string"}}, "lang"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_column_missing_or_of_another_type_in_a_whole_file_is_a_fault_of_that_file(
    columns: dict[str, list[Any]], rules: dict[str, Any], column: str, kind: str, scan: Any, recipe: Recipe, write_parquet: Any, write_jsonl: Any
) -> None:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path = write_parquet("shard-17.parquet", columns) if kind == "parquet" else write_jsonl("shard-17.jsonl", *rows)
    (fault,) = scan(recipe(str(path), **rules)).output.faults
    assert (fault.path, fault.column, fault.records) == (path.name, column, 2)
    assert repr(column) in fault.problem


def test_a_column_missing_in_some_records_is_not_a_fault_of_the_file(scan: Any, recipe: Recipe, write_jsonl: Any) -> None:
    scanned = scan(recipe(str(write_jsonl("a.jsonl", {"text": "a"}, {"body": "b"}))))
    assert scanned.output.faults == ()
    assert scanned.refused == [(2, "missing column")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt"])
def test_an_input_that_changed_since_the_plan_is_refused_and_nothing_is_left(
    name: str, tmp_path: Path, recipe: Recipe, scan: Any, write_parquet: Any
) -> None:
    lines = [b'{"text":"one"}\n', b'{"text":"two"}\n']
    path = tmp_path / name

    def write(line: bytes) -> None:
        match path.suffix:
            case ".parquet":
                write_parquet(name, {"text": [line.decode()]})
            case ".gz":
                path.write_bytes(gzip.compress(line, mtime=0))
            case _:
                path.write_bytes(line)

    write(lines[0])
    config = recipe(str(path))
    plan = plan_groups(plan_inputs(config, PlainHashes()), group_bytes=10**9, source_names=config.corpus.source_names)
    write(lines[1])
    with pytest.raises(InputError, match="changed while the corpus was being made") as caught:
        scan(config, plan)
    assert str(path) in caught.value.what
    assert "run again" in caught.value.mend
    assert not list(tmp_path.rglob("g0000*"))


def test_an_input_that_vanished_is_a_clear_error(tmp_path: Path, recipe: Recipe, scan: Any, write_jsonl: Any) -> None:
    path = write_jsonl("a.jsonl", {"text": "one"})
    config = recipe(str(path))
    plan = plan_groups(plan_inputs(config, PlainHashes()), group_bytes=10**9, source_names=config.corpus.source_names)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        scan(config, plan)


def test_equal_inputs_give_equal_bytes_wherever_they_lie(scan: Any, recipe: Recipe, tmp_path: Path) -> None:
    digests = []
    for place in ("here", "there"):
        folder = tmp_path / place / "source"
        folder.mkdir(parents=True)
        for index in range(30):
            (folder / f"{index}.txt").write_text(f"text {index} " * 50)
        output = scan(recipe(str(folder), splits={"validation": 0.2, "test": 0.2})).output
        assert {file.split for file in output.accepted} == {"train", "validation", "test"}
        digests.append([(file.file, file.documents, file.text_bytes) for file in output.accepted])
    assert digests[0] == digests[1]


def test_the_files_are_what_their_entries_say(scan: Any, recipe: Recipe, write_jsonl: Any) -> None:
    scanned = scan(recipe(str(write_jsonl("a.jsonl", *({"text": f"text {i} é"} for i in range(200)))), splits={"validation": 0.3, "test": 0.3}))
    for file in scanned.output.accepted:
        path = scanned.folder / file.file.path
        texts = pq.read_table(path)["text"].to_pylist()
        assert (hash_file(path), path.stat().st_size) == (file.file.xxh3, file.file.size)
        assert (len(texts), sum(len(text.encode()) for text in texts)) == (file.documents, file.text_bytes)


def test_when_hashes_are_forgotten_the_scan_says_so(scan: Any, recipe: Recipe, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "REMEMBERED_DOCUMENTS", 10)
    path = write_jsonl("a.jsonl", *({"text": f"text {i % 15}"} for i in range(30)))
    scanned = scan(recipe(str(path)))
    assert scanned.output.may_repeat
    assert len(scanned.texts) == 30
    assert not scan(recipe(str(path), drop_duplicates=False)).output.may_repeat


RECORDS = st.lists(
    st.one_of(
        st.text(max_size=30).map(lambda text: json.dumps({"text": text}).encode()),
        st.sampled_from(["a", "b", "c"]).map(lambda text: json.dumps({"text": text}).encode()),
        st.fixed_dictionaries({"text": st.one_of(st.none(), st.integers(), st.lists(st.none()), st.text())}).map(
            lambda record: json.dumps(record).encode()
        ),
        st.binary(max_size=20).map(lambda data: data.replace(b"\n", b" ")),
    ),
    max_size=30,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=RECORDS)
def test_accepted_and_quarantined_are_what_was_read_for_any_bytes(lines: list[bytes], scan: Any, recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "any.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    scanned = scan(recipe(str(path), min_documents=1))
    num_records = max(1, len(lines))  # an empty file is one quarantined record
    assert scanned.read == num_records
    assert len(scanned.accepted) + len(scanned.quarantined) == num_records
    rows = sorted([row["row"] for row in scanned.accepted] + [row["row"] for row in scanned.quarantined])
    assert rows == (list(range(1, len(lines) + 1)) or [0])
    assert len(set(scanned.texts)) == len(scanned.texts)
    total = corpus_stats(scanned.output.stats, source_names=("source-0",)).total
    assert (total.num_accepted, total.num_quarantined) == (len(scanned.accepted), len(scanned.quarantined))
    assert total.lengths.chars == sum(map(len, scanned.texts))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(min_size=1, max_size=20, alphabet="abcdefgh"), min_size=1, max_size=40, unique=True), cut=st.integers(0, 40))
def test_splits_do_not_change_when_documents_are_appended(texts: list[str], cut: int, scan: Any, recipe: Recipe, write_jsonl: Any) -> None:
    def splits_of(part: list[str]) -> dict[str, str]:
        scanned = scan(recipe(str(write_jsonl("grows.jsonl", *({"text": text} for text in part))), splits={"validation": 0.3, "test": 0.3}))
        return {row["text"]: file.split for file in scanned.output.accepted for row in pq.read_table(scanned.folder / file.file.path).to_pylist()}

    before, after = splits_of(texts[:cut] or texts[:1]), splits_of(texts)
    assert before.items() <= after.items()


PEAK_PROGRAM = """
import resource, sys
from pathlib import Path
from cluster.storage import hash_file
from schemas.corpus_config import CorpusConfig
from schemas.manifest import InputFile
from tasks.validate.grouping import plan_groups
from tasks.validate.scan import scan_group
path, folder = Path(sys.argv[1]), Path(sys.argv[2])
corpus = CorpusConfig.model_validate({"sources": [str(path)]})
file = InputFile(source="source-0", path=str(path), relative_path=path.name, size=path.stat().st_size, xxh3=hash_file(path))
def temporary(name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.tmp"
(group,) = plan_groups([file], group_bytes=10**12, source_names=("source-0",)).groups
output = scan_group(group, corpus=corpus, output_dir=folder, temporary=temporary, report=lambda _: None)
print(output.stats[0].read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_stays_bounded_while_the_data_grow_tenfold(tmp_path: Path) -> None:
    words = " ".join(f"word{i}" for i in range(500))
    peaks = []
    for copies in (4000, 40_000):  # 16 MB, 160 MB
        path = tmp_path / f"{copies}.jsonl.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            for i in range(copies):
                file.write(b'{"text":"%d %s"}\n' % (i, words.encode()))
        done = subprocess.run(
            [sys.executable, "-c", PEAK_PROGRAM, str(path), str(tmp_path / str(copies))], capture_output=True, text=True, check=True
        )
        read, peak_mb = map(int, done.stdout.split())
        assert read == copies
        peaks.append(peak_mb)
    assert peaks[1] - peaks[0] < 40, peaks
