"""Records taken together come to what they come to one by one, to the byte of every file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage import hash_file
from schemas.manifest import InputFile
from schemas.recipe_config import CorpusConfig
from tasks.validate import corpus_files, scan
from tasks.validate.intake import FileIntake
from tasks.validate.problem import Problem, Reason
from tasks.validate.readers import Record
from tasks.validate.rules import DocumentRules
from tasks.validate.scan import ScanOutput, Sink

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
        {},
        {"min_chars": 10, "max_chars": 25},
        {"required_columns": {"id": "integer"}},
        {"drop_duplicates": False, "min_printable_share": 0.5},
    ],
    ids=["default", "lengths", "columns", "repeats kept"],
)
@given(fields=st.lists(FIELDS, min_size=30, max_size=60), group_bytes=st.sampled_from([1500, 10**6]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_records_together_are_records_one_by_one(
    rules: dict[str, Any], fields: list[Any], group_bytes: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "_ROW_GROUP_BYTES", group_bytes)
    monkeypatch.setattr(corpus_files, "_ROW_GROUP_ROWS", 6)
    monkeypatch.setattr(scan, "REMEMBERED_DOCUMENTS", 12)
    config = CorpusConfig.model_validate({"sources": ["x"], "rules": rules, "splits": {"validation": 0.2, "test": 0.2}})
    folder = tmp_path_factory.mktemp("scan")
    assert scanned(config, fields, folder / "together", together) == scanned(config, fields, folder / "alone", one_by_one)
