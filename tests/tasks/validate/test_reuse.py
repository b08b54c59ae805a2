"""Groups whose raw files did not change are taken over from an earlier corpus, byte for byte; nothing else is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.layout import sweep_key
from cluster.lease import Lease
from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.errors import DataVerdictError
from schemas.frozen import thaw
from schemas.job import ItemRecord
from schemas.manifest import CorpusPlan
from schemas.stage import Stage
from tasks.identity import identity_of
from tasks.validate import judge as judging
from tasks.validate.build import build
from tasks.validate.checks import Verdict
from tasks.validate.figures.sampling import sampling_of
from tasks.validate.judge import Judgement
from tasks.validate.reuse import facts_of, find_donors, offers
from tasks.work import Draft
from tests.fakes.in_process_work import commit
from tests.fakes.plain_hashes import PlainHashes

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
    draft = build(work)
    identity = identity_of(Stage.VALIDATE, config=config, inputs={}, hashes=PlainHashes())
    record = commit(work.storage.root, Stage.VALIDATE, draft, key=work.key)
    known = {"name": config.name, "fingerprint": identity.fingerprint, "outside": identity.outside, "recipe": identity.recipe}
    sealed = record.model_copy(update={**known, "record_hash": ""}).sealed()
    (work.output_dir / "record.json").write_bytes(sealed.to_bytes())
    return draft, sealed


def files_of(artifact: Path) -> dict[str, bytes]:
    folders = ("accepted", "quarantine", "scans")
    paths = (path for folder in folders for path in sorted((artifact / folder).glob("*")) if path.is_file())
    return {path.relative_to(artifact).as_posix(): path.read_bytes() for path in paths}


def test_one_changed_file_costs_one_group(tmp_path: Path, text: Path, recipe: Recipe, work_on: WorkOn) -> None:
    config = recipe(str(text), group_bytes=2000)
    earlier, _ = finish(work_on(config, key=EARLIER), config)
    assert earlier.summary["reused_groups"] == 0
    (text / "part-3.jsonl").write_bytes((text / "part-3.jsonl").read_bytes().replace(b"document 7 ", b"document Z "))
    work = work_on(config, key=LATER)
    draft = build(work)
    plan = CorpusPlan.model_validate_json((work.output_dir / "plan.json").read_bytes())
    assert draft.summary["reused_groups"] == len(plan.groups) - 1 > 1
    for key in (EARLIER, LATER):
        (tmp_path / "storage" / key).rename(tmp_path / Path(key).name)
    fresh = work_on(config, key=FRESH)
    assert build(fresh).summary["reused_groups"] == 0
    taken = tmp_path / Path(LATER).name
    assert files_of(taken) == files_of(fresh.output_dir)
    assert (taken / "stats.json").read_bytes() == (fresh.output_dir / "stats.json").read_bytes()


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


@pytest.fixture
def repeating(text: Path) -> Path:
    """The texts, where every file also holds a document that all of them hold."""
    for path in text.iterdir():
        path.write_text(path.read_text() + json.dumps({"text": "what everybody says"}) + "\n")
    return text


def test_groups_of_which_repeats_were_removed_are_taken_over_too(tmp_path: Path, repeating: Path, recipe: Recipe, work_on: WorkOn) -> None:
    config = recipe(str(repeating), group_bytes=2000)
    finish(work_on(config, key=EARLIER), config)
    first = repeating / "part-0.jsonl"
    for change, key in ((b"document Z ", LATER), (b"document Y ", FRESH)):  # the second takes from what was taken over
        first.write_bytes(first.read_bytes().replace(b"document 7 ", change).replace(b"document Z ", change))
        work = work_on(config, key=key)
        draft, _ = finish(work, config)
        assert draft.summary["reused_groups"] == draft.summary["groups"] - 1 > 1
        assert draft.summary["reasons"]["duplicate"] == 7
    alone = work_on(config, key="validate/alone-000000000000")
    build(alone)
    assert files_of(work.output_dir) == files_of(alone.output_dir)
    listed = {file.path for file in draft.files}
    assert {path for path in files_of(work.output_dir) if path.startswith("accepted/")} <= listed, "readers of `accepted` see no repeats"
    assert sorted(path.name for path in (work.output_dir / "superseded/accepted").iterdir())


def test_a_damaged_scan_that_was_set_aside_is_made_again(repeating: Path, recipe: Recipe, work_on: WorkOn) -> None:
    config = recipe(str(repeating), group_bytes=2000)
    earlier = work_on(config, key=EARLIER)
    groups = finish(earlier, config)[0].summary["groups"]
    victim = sorted((earlier.output_dir / "superseded/accepted").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-1])
    assert build(work_on(config, key=LATER)).summary["reused_groups"] == groups - 1


def test_rules_for_the_whole_corpus_have_nothing_scanned_again(text: Path, recipe: Recipe, work_on: WorkOn) -> None:
    groups = finish(work_on(recipe(str(text), group_bytes=2000), key=EARLIER), recipe(str(text), group_bytes=2000))[0].summary["groups"]
    other = recipe(str(text), group_bytes=2000, max_quarantined_share=0.5, max_record_drift=0.2, min_documents=2)
    assert build(work_on(other, key=LATER)).summary["reused_groups"] == groups


def test_a_corpus_that_failed_its_verdict_is_not_scanned_again(text: Path, recipe: Recipe, work_on: WorkOn, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = recipe(str(text), group_bytes=2000, min_documents=1000)
    with monkeypatch.context() as patched:
        patched.setattr(judging, "judge", lambda *_, **__: Judgement(Verdict.FAIL, 1, ()))
        with pytest.raises(DataVerdictError):
            build(work_on(strict, key=EARLIER))
    lenient = recipe(str(text), group_bytes=2000, min_documents=10)
    work = work_on(lenient, key=LATER)
    draft = build(work)
    assert draft.summary["reused_groups"] == draft.summary["groups"] > 1


def test_what_a_killed_scan_left_is_taken_over(text: Path, recipe: Recipe, work_on: WorkOn) -> None:
    config = recipe(str(text), group_bytes=2000)
    earlier = work_on(config, key=EARLIER)
    groups = build(earlier).summary["groups"]
    for name in ("scans/g0001.json", "accepted/g0002-train.parquet"):
        (earlier.output_dir / name).unlink()
    assert build(work_on(config, key=LATER)).summary["reused_groups"] == groups - 2


def test_nothing_is_taken_from_what_is_being_made_removed_or_damaged(text: Path, recipe: Recipe, work_on: WorkOn) -> None:
    config = recipe(str(text), group_bytes=2000)
    earlier = work_on(config, key=EARLIER)
    groups = build(earlier).summary["groups"]
    storage, layout = earlier.storage, earlier.layout

    def reused() -> int:
        identity = work_on(config, key=LATER).identity
        plan = CorpusPlan.model_validate_json((earlier.output_dir / "plan.json").read_bytes())
        donors = find_donors(storage, identity, facts=facts_of(identity.recipe, sampling=sampling_of(plan.raw_bytes)))
        return len(donors)

    assert groups
    assert reused() == 1
    with Lease.take(storage, layout.leases):
        assert reused() == 0
    assert reused() == 1
    storage.create_exclusive(sweep_key(EARLIER), b"{}")
    assert reused() == 0
    storage.delete(sweep_key(EARLIER))
    storage.create_exclusive(layout.record, b"{}")
    assert reused() == 0


def test_more_donors_than_are_asked_do_no_harm(text: Path, recipe: Recipe, work_on: WorkOn) -> None:
    config = recipe(str(text), group_bytes=2000)
    whole = build(work_on(config, key="validate/test-00000000000a")).summary["groups"]
    for digit in "bcde":
        folder = work_on(config, key=f"validate/test-00000000000{digit}").output_dir
        (folder / "scans").mkdir(parents=True)
        source = work_on(config, key="validate/test-00000000000a").output_dir / "scans/g0000.json"
        (folder / "scans/g0000.json").write_bytes(source.read_bytes())
    assert build(work_on(config, key=LATER)).summary["reused_groups"] == whole, "the one that has most is among those that are asked"


def test_an_offer_says_what_the_item_says_that_takes_it(text: Path, recipe: Recipe, work_on: WorkOn) -> None:
    config = recipe(str(text), group_bytes=2000)
    build(work_on(config, key=EARLIER))
    work = work_on(config, key=LATER)
    build(work)
    plan = CorpusPlan.model_validate_json((work.output_dir / "plan.json").read_bytes())
    facts = facts_of(work.identity.recipe, sampling=sampling_of(plan.raw_bytes))
    wanted = set(range(1, len(plan.groups)))
    found = list(offers(wanted, storage=work.storage, groups=plan.groups, donors=[Path(EARLIER).name], facts=facts))
    assert [offer.index for offer in found] == sorted(wanted)
    for offer in found:
        said = ItemRecord.model_validate_json(work.storage.read(work.layout.item("scan", offer.index)))
        assert (offer.key, offer.files, offer.output) == (EARLIER, said.files, thaw(said.output))


def test_other_rules_take_nothing_over(text: Path, recipe: Recipe, work_on: WorkOn) -> None:
    config = recipe(str(text), group_bytes=2000)
    finish(work_on(config, key=EARLIER), config)
    other = recipe(str(text), group_bytes=2000, min_chars=5)
    assert build(work_on(other, key=LATER)).summary["reused_groups"] == 0
