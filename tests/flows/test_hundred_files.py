"""A corpus of a hundred files, as a user has it: what one changed byte costs, and what being killed again and again changes."""

import json
import os
import re
import secrets
import signal
import subprocess
import sysconfig
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.s3_storage import S3Storage
from schemas.stage import Stage
from tests.fakes.live_job import wait_until
from tests.fakes.made_stages import judge_leniently, make_stages
from tests.fakes.s3_server import BUCKET, S3Server
from tests.fakes.tiny_pipeline import Project, make_project

pytestmark = pytest.mark.exhaustive

FILES, GROUP_BYTES, KILLS = 100, 60_000, 10


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with a tokenizer of its own, whose first run is done."""
    changes: dict[str, Any] = {"name": "hundred", "corpus.group_bytes": GROUP_BYTES, "training.steps": 2, "training.schedule.warmup_steps": 1}
    project = make_project(tmp_path / "project", changes={**changes, "corpus.sources": [{"path": "parts", "name": "code"}]})
    _write_parts(project.folder / "parts")
    first = project.headrace("run", "tiny.yaml", timeout_s=400)
    assert first.returncode == 0, first.stdout + first.stderr
    tokenizer = project.artifact("tokenizer") / "tokenizer.json"
    (project.folder / "given.json").write_bytes(tokenizer.read_bytes())
    recipe = yaml.safe_load(project.recipe.read_text())
    recipe["tokenizer"] = {"path": "given.json", "min_bytes_per_token": 1.0, "max_tokens_per_word": 20.0}
    project.recipe.write_text(yaml.safe_dump(recipe))
    again = project.headrace("run", "tiny.yaml", timeout_s=400)
    assert again.returncode == 0, again.stdout + again.stderr
    return project


def _write_parts(folder: Path) -> None:
    folder.mkdir()
    text = "".join(path.read_text(errors="ignore") for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60])
    size = len(text) // FILES
    for number in range(FILES):
        documents = (text[start : start + 2000] for start in range(number * size, (number + 1) * size, 2000))
        (folder / f"part-{number:03}.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))


def _change_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"import")] = ord("I")
    path.write_bytes(bytes(data))


def _record(project: Project, stage: str) -> Any:
    newest = max(project.root.glob(f"{stage}/*/record.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_bytes())


def test_one_changed_byte_costs_one_group(project: Project) -> None:
    groups, shards = (_record(project, stage)["summary"][name] for stage, name in (("validate", "groups"), ("tokenize", "shards")))
    assert groups > 10
    _change_a_byte(project.folder / "parts" / "part-042.jsonl")
    stages = {stage["stage"]: " ".join(stage["reasons"]) for stage in project.answer("plan", "tiny.yaml")["stages"]}
    assert "code/part-042.jsonl changed" in stages["validate"]
    concerned = re.search(r"group (g\d{4}) of (\d+) scanned anew", stages["validate"])
    assert concerned is not None
    assert int(concerned[2]) == groups
    cut = re.search(rf"cut anew at most: group {concerned[1]} \((\d+) of {shards} shards\)", stages["tokenize"])
    assert cut is not None
    assert 0 < int(cut[1]) <= 3
    done = project.headrace("run", "tiny.yaml", timeout_s=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _record(project, "validate")["summary"]["reused_groups"] == groups - 1
    tokenized = _record(project, "tokenize")["summary"]
    assert tokenized["shards"] - int(cut[1]) <= tokenized["reused_shards"] < tokenized["shards"]


def test_in_a_bucket_one_changed_byte_costs_one_group_too(
    project: Project, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judge_leniently(monkeypatch)
    url = f"s3://{BUCKET}/hundred-{secrets.token_hex(4)}"
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    groups, shards = (_record(project, stage)["summary"][name] for stage, name in (("validate", "groups"), ("tokenize", "shards")))
    make_stages(project, f"storage.root={url}", until=Stage.TOKENIZE)
    _change_a_byte(project.folder / "parts" / "part-042.jsonl")
    reasons = {stage["stage"]: " ".join(stage["reasons"]) for stage in project.answer("plan", "tiny.yaml", "--set", f"storage.root={url}")["stages"]}
    assert "the others taken over" in reasons["validate"]
    corpus, _, tokens = make_stages(project, f"storage.root={url}", until=Stage.TOKENIZE)
    assert corpus.summary["reused_groups"] == groups - 1
    assert shards - 3 <= tokens.summary["reused_shards"] < shards
    fresh = make_stages(project, f"storage.root={tmp_path / 'fresh'}", until=Stage.TOKENIZE)
    assert [fresh[0].content_hash, fresh[2].content_hash] == [corpus.content_hash, tokens.content_hash]
    bucket = S3Storage(url)
    for record in (corpus, tokens):
        assert all(bucket.hash(f"{record.key}/{file.path}") == file.xxh3 for file in record.files if file.path.endswith(".parquet"))


def test_killed_ten_times_in_the_middle_validation_and_tokenizing_make_the_same(project: Project, tmp_path: Path) -> None:
    calm = {stage: _record(project, stage)["content_hash"] for stage in ("validate", "tokenize")}
    manifest = (project.root / _record(project, "tokenize")["key"] / "manifest.json").read_bytes()
    recipe = yaml.safe_load(project.recipe.read_text())
    recipe["storage"] = {"root": str(tmp_path / "elsewhere")}
    project.recipe.write_text(yaml.safe_dump(recipe))
    elsewhere = tmp_path / "elsewhere"
    for stage in ("validate",) * (KILLS - 2) + ("tokenize",) * 2:
        seen = len(_items(elsewhere, stage))
        run = project.start("run", "tiny.yaml")
        wait_until(partial(_goes_on, run, elsewhere, stage, seen), patience_s=120.0)
        assert not list(elsewhere.glob(f"{stage}/*/record.json")), f"{stage} must be killed in the middle"
        assert run.poll() is None, (project.folder / "output.log").read_text()
        _kill_everything(project)
        run.wait(timeout=30)
    done = project.headrace("run", "tiny.yaml", timeout_s=400)
    assert done.returncode == 0, done.stdout + done.stderr
    again = {stage: json.loads(next((tmp_path / "elsewhere").glob(f"{stage}/*/record.json")).read_bytes()) for stage in calm}
    assert {stage: record["content_hash"] for stage, record in again.items()} == calm
    assert (tmp_path / "elsewhere" / again["tokenize"]["key"] / "manifest.json").read_bytes() == manifest
    assert [path for path in elsewhere.rglob(".tmp-*") if re.match(r"\.tmp-e\d{6,}-\d+-", path.name)] == [], "what killed items had begun goes"


def _items(root: Path, stage: str) -> list[Path]:
    """The records of finished items of a stage."""
    return list(root.glob(f"{stage}/*/items/*.json"))


def _goes_on(run: "subprocess.Popen[bytes]", root: Path, stage: str, seen: int) -> bool:
    """Whether one more item of a stage is finished, or nobody works at it any more."""
    return len(_items(root, stage)) > seen or run.poll() is not None


def _kill_everything(project: Project) -> None:
    """Kills all that works for the project, with -9."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if str(project.folder) in " ".join((process.cwd(), *process.cmdline())) and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    for process in found:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
