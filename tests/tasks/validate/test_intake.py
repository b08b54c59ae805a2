"""Records taken together come to what they come to one by one, to the byte of every file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage import hash_file
from schemas.corpus_config import CorpusConfig
from schemas.manifest import InputFile
from tasks.validate import corpus_files, json_lines
from tasks.validate import scan as scanning
from tasks.validate.intake import FileIntake
from tasks.validate.problem import Problem, Reason
from tasks.validate.records import Batch, Columns, Record
from tasks.validate.rules import DocumentRules
from tasks.validate.scan import ScanOutput, Sink
from tests.fakes.in_process_work import config_with

FILE = InputFile(source="source-0", path="/raw/a.jsonl", relative_path="a.jsonl", size=1, xxh3="0")

TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "\n\t", "short", "a" * 40, "水轮转动" * 5, "\0", "x\0y", "\u2028 odd", "\ue000" * 3 + "private", "\x07" * 9, "same text again"]
    ),
    st.text(max_size=30),
    st.integers(0, 10_000).map(lambda number: f"document {number} flows through the mill"),
)
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
ORDINARY = st.integers(0, 300).map(lambda number: {"text": f"document {number} flows through the mill", "id": number})
FIELDS = st.one_of(
    ORDINARY,
    ORDINARY,
    ORDINARY,
    ORDINARY,
    st.none(),
    st.fixed_dictionaries({"text": TEXTS}, optional={"id": st.integers(), "tag": st.sampled_from(["a", None, 1.5, DEEP])}),
    st.sampled_from([{"text": None}, {"text": 3}, {"other": "no text"}, {}]),
)


def scanned(config: CorpusConfig, fields: list[dict[str, Any] | None], folder: Path, take: Callable[[FileIntake, list[Record]], None]) -> Any:
    """Returns what a group of one file amounts to, and the hash of every file."""
    broken = Problem(Reason.INVALID_JSON, "bad")
    records = [
        Record(row, None if each is None else dict(each), broken if each is None else None, b"raw") for row, each in enumerate(fields, start=1)
    ]
    rules = DocumentRules(config.rules, text_column="text", kind="jsonl")
    folder.mkdir()

    def temporary(name: str) -> Path:
        (folder / name).parent.mkdir(exist_ok=True)
        return (folder / name).with_suffix(".tmp")

    with Sink(0, corpus=config, output_dir=folder, temporary=temporary) as sink:
        intake = FileIntake(FILE, rules=rules, text_column="text", sink=sink)
        take(intake, records)
        output: ScanOutput = sink.publish(faults=tuple(intake.finish()))
    return output, {path.name: hash_file(path) for path in folder.rglob("*.parquet")}


def one_by_one(intake: FileIntake, records: list[Record]) -> None:
    for record in records:
        intake.take(record)


def together(intake: FileIntake, records: list[Record]) -> None:
    for first in range(0, len(records), 7):
        intake.take_all(records[first : first + 7])


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param({}, id="default"),
        pytest.param({"min_chars": 10, "max_chars": 25}, id="lengths", marks=pytest.mark.slow),
        pytest.param({"required_columns": {"id": "integer"}}, id="columns", marks=pytest.mark.slow),
        pytest.param({"drop_duplicates": False, "min_printable_share": 0.5}, id="repeats kept", marks=pytest.mark.slow),
    ],
)
@given(fields=st.lists(FIELDS, min_size=30, max_size=60), group_bytes=st.sampled_from([1500, 10**6]))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_records_together_are_records_one_by_one(
    rules: dict[str, Any], fields: list[Any], group_bytes: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "_ROW_GROUP_BYTES", group_bytes)
    monkeypatch.setattr(corpus_files, "_ROW_GROUP_ROWS", 6)
    monkeypatch.setattr(scanning, "REMEMBERED_DOCUMENTS", 12)
    config = CorpusConfig.model_validate({"sources": ["x"], "rules": rules, "splits": {"validation": 0.2, "test": 0.2}})
    folder = tmp_path_factory.mktemp("scan")
    assert scanned(config, fields, folder / "together", together) == scanned(config, fields, folder / "alone", one_by_one)


def take_alone(intake: FileIntake, batch: Batch) -> None:
    """Stands for `take_all`: the definition of what it does."""
    for record in map(batch.record, range(len(batch))) if isinstance(batch, Columns) else batch:
        intake.take(record)


LINES = st.one_of(
    *[st.integers(0, 400).map(lambda number: b'{"text":"document %d flows through the mill","id":%d}' % (number, number))] * 5,
    st.text(max_size=30).map(lambda text: json.dumps({"text": text, "tags": [text]}).encode()),
    st.sampled_from([b'{"text":null}', b'{"text":" "}', b'{"text":"x\\u0000y"}', b'{"id":1}', b'{"text":"\xe6\xb0\xb4\xe8\xbd\xae","b":1.50}']),
    st.sampled_from([b"", b"broken", b'{"text":"\xff"}', b"[1]", b'{"text":"deep","d":' + b"[" * 300 + b"]" * 300 + b"}"]),
)


@given(
    lines=st.lists(LINES, min_size=20, max_size=60),
    rules=st.sampled_from([{}, {"required_columns": {"id": "integer"}}, {"min_chars": 8}, {"drop_duplicates": False}]),
)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_of_lines_come_to_what_their_records_do_one_by_one(lines: list[bytes], rules: dict[str, Any], scan: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "_LINES_PER_PART", 4)
        patch.setattr(corpus_files, "_ROW_GROUP_ROWS", 6)
        assert_equal_to_one_by_one(scan, path, rules)


@given(
    texts=st.lists(st.none() | TEXTS | st.just("same"), min_size=10, max_size=60),
    kind=st.sampled_from([pa.string(), pa.large_string(), pa.binary()]),
    rules=st.sampled_from([{}, {"required_columns": {"id": "integer"}}, {"min_chars": 8}]),
)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parquet_files_come_to_what_their_records_do_one_by_one(
    texts: list[Any], kind: Any, rules: dict[str, Any], scan: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    numbers = [None if index % 7 == 5 else index for index in range(len(texts))]
    table = pa.table({"id": numbers, "text": pa.array(texts).cast(kind), "name": [f"n{index}" for index in range(len(texts))]})
    pq.write_table(table, path, row_group_size=25)
    assert_equal_to_one_by_one(scan, path, rules)


def assert_equal_to_one_by_one(scan: Any, path: Path, rules: dict[str, Any]) -> None:
    config = make_config(path, rules)
    together = scan(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileIntake, "take_all", take_alone)
        alone = scan(config)
    assert together.output == alone.output  # figures, and the hash of every file
    assert together.accepted == alone.accepted


def make_config(path: Path, rules: dict[str, Any]) -> Any:
    return config_with(corpus={"sources": [str(path)], "rules": rules, "splits": {"validation": 0.2, "test": 0.2}})
