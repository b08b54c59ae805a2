"""The stage over text behind URLs: the corpus that a folder with the same files gives; what changed there is made anew, and nothing else is read."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.remote_files import RemoteFiles
from cluster.storage import hash_file
from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.errors import InputError
from schemas.manifest import CorpusManifest, CorpusPlan
from schemas.stage import Stage
from tasks.file_hashes import FileHashes
from tasks.identity import identity_of
from tasks.validate import judge as judging
from tasks.validate.build import build
from tasks.validate.checks import Verdict
from tasks.validate.judge import Judgement
from tasks.work import Draft
from tests.fakes.in_process_work import commit
from tests.fakes.remote_text import InMemory

Recipe = Callable[..., RunConfig]
WorkOn = Callable[..., Any]
EARLIER, LATER, FRESH = (f"validate/test-{digit * 12}" for digit in "123")


@pytest.fixture(autouse=True)
def lenient_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "judge", lambda *_, **__: Judgement(Verdict.PASS, 1, ()))
    monkeypatch.setattr(judging, "preload", lambda: None)


@pytest.fixture
def place() -> InMemory:
    place = InMemory()
    for number in range(6):
        place.put(f"raw/part-{number}.jsonl.gz", shard(f"of file {number}"))
    return place


def shard(words: str) -> bytes:
    lines = [json.dumps({"text": f"document {line} {words}"}) for line in range(300)]
    return gzip.compress("\n".join(lines).encode(), mtime=0)


@pytest.fixture
def work_on_url(work_on: WorkOn, monkeypatch: pytest.MonkeyPatch) -> WorkOn:
    """Gives the stage over a recipe with remote text: its identity comes of hashes that know servers."""

    def work_on_url(config: RunConfig, *, key: str) -> Any:
        work = work_on(config, key=key)
        with FileHashes(work.state_dir / "identity.sqlite") as hashes:
            identity = identity_of(Stage.VALIDATE, config=config, inputs={}, hashes=hashes)
        monkeypatch.setattr(type(work), "identity", property(lambda _: identity))
        work.bench = SimpleNamespace(stop_requested=lambda: False)
        return work

    return work_on_url


def finish(work: Any) -> tuple[Draft, ArtifactRecord]:
    """Builds and commits, as a run does."""
    draft, identity = build(work), work.identity
    record = commit(work.storage.root, Stage.VALIDATE, draft, key=work.key)
    known = {"name": work.config.name, "fingerprint": identity.fingerprint, "outside": identity.outside, "recipe": identity.recipe}
    sealed = record.model_copy(update={**known, "record_hash": ""}).sealed()
    (work.output_dir / "record.json").write_bytes(sealed.to_bytes())
    return draft, sealed


def manifest_of(work: Any) -> CorpusManifest:
    return CorpusManifest.model_validate_json((work.output_dir / "manifest.json").read_bytes())


def test_the_corpus_is_that_of_a_folder_with_the_same_files(
    tmp_path: Path, place: InMemory, recipe: Recipe, work_on: WorkOn, work_on_url: WorkOn
) -> None:
    folder, servers = tmp_path / "in", RemoteFiles()
    folder.mkdir()
    for file in servers.below(f"{place.url}/raw"):
        servers.fetch(file.url, target=folder / file.url.rpartition("/")[2])
    shape: dict[str, Any] = {"group_bytes": 1000, "splits": {"validation": 0.2, "test": 0.2}}
    local = work_on(recipe(str(folder), **shape), key=EARLIER)
    here, identity = build(local), local.identity
    remote = work_on_url(recipe(f"{place.url}/raw", **shape), key=LATER)
    there = build(remote)
    assert remote.identity.fingerprint == identity.fingerprint
    assert (there.content_hash, there.summary["facts"]) == (here.content_hash, here.summary["facts"])
    assert manifest_of(remote).files == manifest_of(local).files
    inputs = manifest_of(remote).inputs
    assert [file.path for file in inputs] == [f"{place.url}/raw/{file.relative_path}" for file in inputs]
    assert not (remote.output_dir / "carried").exists()


def test_a_changed_object_has_its_group_fetched_and_scanned_anew_and_no_other(
    place: InMemory, recipe: Recipe, work_on_url: WorkOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(place.url, group_bytes=1000)
    _, earlier = finish(work_on_url(config, key=EARLIER))
    place.put("raw/part-2.jsonl.gz", shard("of file Z"))
    work = work_on_url(config, key=LATER)
    targets: list[str] = []
    fetch = RemoteFiles.fetch
    monkeypatch.setattr(
        RemoteFiles,
        "fetch",
        lambda self, url, target=None, **how: (targets.append(url) if target else None, fetch(self, url, target=target, **how))[1],
    )
    draft = build(work)
    plan = CorpusPlan.model_validate_json((work.output_dir / "plan.json").read_bytes())
    (changed,) = (group for group in plan.groups if any(file.relative_path == "raw/part-2.jsonl.gz" for file in group.inputs))
    assert draft.summary["reused_groups"] == len(plan.groups) - 1 > 1
    assert sorted(targets) == sorted(file.path for file in changed.inputs)
    assert draft.content_hash != earlier.content_hash


def test_a_group_whose_earlier_files_are_damaged_is_fetched_again(place: InMemory, recipe: Recipe, work_on_url: WorkOn) -> None:
    config = recipe(place.url, group_bytes=1000)
    earlier = work_on_url(config, key=EARLIER)
    finish(earlier)
    victim = next(iter(sorted((earlier.output_dir / "accepted").glob("g*"))))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    again = work_on_url(config, key=LATER)
    draft = build(again)
    plan = CorpusPlan.model_validate_json((again.output_dir / "plan.json").read_bytes())
    assert draft.summary["reused_groups"] == len(plan.groups) - 1
    assert hash_file(again.output_dir / "accepted" / victim.name) != hash_file(victim)


def test_what_changes_after_it_was_planned_stops_the_stage(place: InMemory, recipe: Recipe, work_on_url: WorkOn) -> None:
    work = work_on_url(recipe(place.url), key=EARLIER)
    place.put("raw/part-2.jsonl.gz", b"another")
    with pytest.raises(InputError, match="changed while the run began"):
        build(work)
