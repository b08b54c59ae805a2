"""The compute half as the program that agents start."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import hash_file, make_folder
from schemas.config import RunConfig
from schemas.exit_code import ExitCode
from schemas.job import ItemRecord
from tasks.carrying import CARRIED
from tasks.validate.grouping import plan_groups
from tasks.validate.job import PLAN_NAME, SCAN
from tasks.validate.sources import plan_inputs
from tests.fakes.plain_hashes import PlainHashes

HEAVY = ("pandas", "great_expectations", "prefect", "mlflow", "torch", "transformers", "duckdb")


def modules_after(statement: str) -> set[str]:
    program = f"{statement}; import json, sys; print(json.dumps(list(sys.modules)))"
    return set(json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout))


@pytest.fixture
def start_scan(tmp_path: Path, recipe: Callable[..., RunConfig], work_on: Callable[..., Any]) -> Callable[..., Any]:
    """Plans a corpus, lets the test tamper with it, and runs the scan's only item as a process."""

    def start(path: Path, tamper: Callable[[], object] = lambda: None) -> tuple[Any, subprocess.CompletedProcess[str]]:
        config = recipe(str(path))
        work = work_on(config)
        make_folder(work.output_dir)
        work.publish_json(PLAN_NAME, plan_groups(plan_inputs(config, PlainHashes()), group_bytes=10**9, source_names=config.corpus.source_names))
        tamper()
        spec = tmp_path / "spec.json"
        spec.write_text(work.task_spec(SCAN, options={"donors": [], "facts": "as ever"}).model_dump_json())
        argv = [sys.executable, "-m", "tasks.validate.job", "--spec", str(spec), "--index", "0"]
        return work, subprocess.run(argv, capture_output=True, text=True, check=False)

    return start


@pytest.mark.slow
def test_an_item_leaves_its_files_and_its_record(start_scan: Callable[..., Any], write_jsonl: Callable[..., Path]) -> None:
    work, done = start_scan(write_jsonl("a.jsonl", {"text": "one"}, {"text": None}))
    assert (done.returncode, done.stderr) == (ExitCode.DONE, "")
    record = ItemRecord.model_validate_json(work.storage.read(work.layout.item(SCAN, 0)))
    assert {entry.path for entry in record.files} == {path.relative_to(work.output_dir).as_posix() for path in work.output_dir.rglob("g0000*")}
    assert [part["read"] for part in record.output["scan"]["stats"]] == [2]


@pytest.mark.slow
def test_a_file_that_was_brought_to_the_node_is_read_there_and_called_what_it_was(
    start_scan: Callable[..., Any], write_jsonl: Callable[..., Path]
) -> None:
    """Of a node that does not see the user's folders. The name there says nothing, neither of the format nor in what is made."""
    path = write_jsonl("a.jsonl", {"text": "one"})
    seen, _ = start_scan(path)
    there = ItemRecord.model_validate_json(seen.storage.read(seen.layout.item(SCAN, 0)))
    shutil.rmtree(seen.output_dir)

    def bring() -> None:
        (seen.output_dir / CARRIED).mkdir()
        path.rename(seen.output_dir / CARRIED / hash_file(path))

    work, done = start_scan(path, tamper=bring)
    assert (done.returncode, done.stderr) == (ExitCode.DONE, "")
    here = ItemRecord.model_validate_json(work.storage.read(work.layout.item(SCAN, 0)))
    assert here.files == there.files
    assert here.output["scan"]["stats"] == there.output["scan"]["stats"]


@pytest.mark.slow
def test_a_changed_input_ends_it_with_a_message_and_no_record(start_scan: Callable[..., Any], write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl("a.jsonl", {"text": "one"})
    work, done = start_scan(path, tamper=lambda: path.write_text('{"text": "two"}\n'))
    assert done.returncode == ExitCode.USAGE
    assert "changed while the corpus was being made" in done.stderr
    assert "Traceback" not in done.stderr
    assert not work.storage.exists(work.layout.item(SCAN, 0))
    assert not list(work.output_dir.rglob("*.parquet"))


@pytest.mark.slow
def test_a_scan_imports_nothing_heavy() -> None:
    assert not modules_after("import tasks.validate.job, tasks.validate.parquet_reader").intersection(HEAVY)


@pytest.mark.slow
def test_planning_inputs_imports_neither_pyarrow_nor_anything_heavy() -> None:
    assert not modules_after("import tasks.validate.sources").intersection((*HEAVY, "pyarrow", "numpy"))
