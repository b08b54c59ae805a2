"""Groups whose raw files did not change are taken over from an earlier corpus, byte for byte; nothing else is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.manifest import CorpusPlan
from schemas.stage import Stage
from tasks.identity import identity_of
from tasks.validate import judge as judging
from tasks.validate.build import build
from tasks.validate.checks import Verdict
from tasks.validate.judge import Judgement
from tasks.work import Draft
from tests.fakes.in_process_work import commit

Recipe = Callable[..., RunConfig]
WorkOn = Callable[..., Any]
EARLIER, LATER, FRESH = (f"validate/test-{digit * 12}" for digit in "123")


@pytest.fixture(autouse=True)
def lenient_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "judge", lambda *_, **__: Judgement(Verdict.PASS, 1, ()))
    monkeypatch.setattr(judging, "preload", lambda: None)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(8):
        lines = [json.dumps({"text": f"document {line} of file {number}"}) for line in range(30)]
        (folder / f"part-{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def finish(work: Any, config: RunConfig) -> tuple[Draft, ArtifactRecord]:
    """Builds and commits, as a run does."""
    from cluster.storage import hash_file

    draft = build(work)
    identity = identity_of(Stage.VALIDATE, config=config, inputs={}, hash_file=hash_file)
    record = commit(work.storage.root, Stage.VALIDATE, draft, key=work.key)
    known = {"name": config.name, "fingerprint": identity.fingerprint, "outside": identity.outside, "recipe": identity.recipe}
    sealed = record.model_copy(update={**known, "record_hash": ""}).sealed()
    (work.output_dir / "record.json").write_bytes(sealed.to_bytes())
    return draft, sealed


def files_of(work: Any) -> dict[str, bytes]:
    folders = ("accepted", "quarantine", "scans")
    return {
        path.relative_to(work.output_dir).as_posix(): path.read_bytes()
        for folder in folders
        for path in sorted((work.output_dir / folder).glob("*"))
        if path.is_file()
    }


def test_one_changed_file_costs_one_group(tmp_path: Path, text: Path, recipe: Recipe, work_on: WorkOn) -> None:
    config = recipe(str(text), group_bytes=2000)
    earlier, _ = finish(work_on(config, key=EARLIER), config)
    assert earlier.summary["reused_groups"] == 0
    (text / "part-3.jsonl").write_bytes((text / "part-3.jsonl").read_bytes().replace(b"document 7 ", b"document Z "))
    work = work_on(config, key=LATER)
    draft = build(work)
    plan = CorpusPlan.model_validate_json((work.output_dir / "plan.json").read_bytes())
    assert draft.summary["reused_groups"] == len(plan.groups) - 1 > 1
    (tmp_path / "storage" / EARLIER / "record.json").unlink()
    fresh = work_on(config, key=FRESH)
    assert build(fresh).summary["reused_groups"] == 0
    assert files_of(work) == files_of(fresh)
    assert (work.output_dir / "stats.json").read_bytes() == (fresh.output_dir / "stats.json").read_bytes()


@pytest.mark.parametrize("what", ["scans", "accepted"])
def test_what_is_damaged_there_is_scanned_again(text: Path, recipe: Recipe, work_on: WorkOn, what: str) -> None:
    config = recipe(str(text), group_bytes=2000)
    earlier = work_on(config, key=EARLIER)
    finish(earlier, config)
    victim = next(iter(sorted((earlier.output_dir / what).glob("g0000*"))))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    (text / "part-3.jsonl").write_text('{"text": "another"}\n')
    groups = CorpusPlan.model_validate_json((earlier.output_dir / "plan.json").read_bytes()).groups
    (changed,) = (group.index for group in groups if any(file.relative_path == "part-3.jsonl" for file in group.inputs))
    draft = build(work_on(config, key=LATER))
    assert draft.summary["reused_groups"] == len(groups) - len({0, changed}) > 0


def test_other_rules_take_nothing_over(text: Path, recipe: Recipe, work_on: WorkOn) -> None:
    config = recipe(str(text), group_bytes=2000)
    finish(work_on(config, key=EARLIER), config)
    other = recipe(str(text), group_bytes=2000, min_chars=5)
    assert build(work_on(other, key=LATER)).summary["reused_groups"] == 0
