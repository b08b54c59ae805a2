"""What a plan says of raw files that changed, and that a run does no more than it says."""

import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import FileStorage
from schemas.artifact import ArtifactRecord, FileEntry
from schemas.config import RunConfig
from schemas.manifest import CorpusGroup, CorpusPlan, InputFile, Shard, ShardManifest
from schemas.stage import Stage
from tasks.identity import identity_of
from tasks.planning import make_plan
from tasks.raw_changes import differences
from tasks.store import Store
from tasks.validate import judge as judging
from tests.fakes.in_process_work import commit, config_with
from tests.fakes.made_stages import judge_leniently
from tests.fakes.plain_hashes import PlainHashes
from tests.tasks.validate.conftest import CorpusWork


def plan(*groups: dict[str, str]) -> CorpusPlan:
    """A plan whose groups are given as name → content; an empty one is left out."""
    return CorpusPlan(
        groups=tuple(
            CorpusGroup(
                index=index,
                inputs=tuple(InputFile(source="web", path=f"/x/{name}", relative_path=name, size=1, xxh3=content) for name, content in files.items()),
            )
            for index, files in enumerate(groups)
            if files
        )
    )


BEFORE = plan({"a": "1", "b": "2"}, {"c": "3"}, {"d": "4"})


def test_nothing_is_said_of_what_did_not_change() -> None:
    assert differences(BEFORE, BEFORE).reasons() == ()


def test_changed_new_and_missing_files_are_named_with_their_groups() -> None:
    raw = differences(BEFORE, plan({"a": "1", "b": "2"}, {"c": "other"}, {"e": "5"}))
    assert raw.reasons() == ("web/c changed", "web/e is new", "web/d is gone", "groups g0001, g0002 of 3 scanned anew, the others taken over")


def test_groups_that_cannot_be_taken_over_are_not_promised() -> None:
    raw = replace(differences(BEFORE, plan({"a": "1", "b": "2"}, {"c": "other"}, {"d": "4"})), scanned=frozenset(range(3)))
    assert raw.reasons()[-1] == "group g0001 of 3 scanned anew, and the others, which cannot be taken over"
    assert differences(plan({"a": "1"}), plan({"a": "2"})).reasons()[-1] == "group g0000 of 1 scanned anew"
    assert replace(raw, scanned=frozenset()).reasons()[-1] == "no group of 3 scanned anew, all taken over"


def test_of_many_files_some_are_named() -> None:
    before, after = ({f"{number:02}": content for number in range(9)} for content in ("1", "2"))
    assert differences(plan(before), plan(after)).reasons()[0] == "web/00, web/01, web/02 and 6 more changed"


def shards_of(*groups: int) -> ShardManifest:
    """A manifest of shards of these groups."""
    file = FileEntry(path="shards/x.parquet", size=1, xxh3="0" * 32)
    about: dict[str, Any] = {"split": "train", "file": file, "rows": 1, "tokens": 1, "last_row_tokens": 1, "payload_offset": 0, "text_bytes": 1}
    facts: dict[str, Any] = {"layout": "fixed", "dtype": "uint16", "sequence_length": 8, "vocab_size": 300, "end_of_text_id": 0}
    return ShardManifest(**facts, tokenizer_hash="", engine="huggingface", shards=tuple(Shard(group=group, **about) for group in groups))


GIVEN = {"tokenizer": {"path": "given.json"}}
SECOND = plan({"a": "1", "b": "2"}, {"c": "other"}, {"d": "4"})
LAST = plan({"a": "1", "b": "2"}, {"c": "3"}, {"d": "other"})
DUPLICATES, PREPARED = ", and groups in which a duplicate comes back or goes", ", and groups in which prepare refuses other documents than before"
BOTH = PREPARED.replace("prepare", "validate or prepare")


@pytest.mark.parametrize(
    ("now", "corpus", "said"),
    [
        (SECOND, {}, f"group g0001 (2 of 5 shards){DUPLICATES}"),
        (LAST, {}, "group g0002 (1 of 5 shards)"),
        (SECOND, {"rules": {"drop_duplicates": False}}, "group g0001 (2 of 5 shards)"),
        (plan({"a": "1", "b": "2"}, {}, {"d": "4"}), {}, DUPLICATES.removeprefix(", and ")),
        (plan({"a": "1", "b": "2"}, {"c": "3"}), {}, "no group"),
        (plan({"a": "1", "b": "2"}, {"c": "3"}, {"d": "4"}, {"e": "5"}), {}, "group g0003 (0 of 5 shards)"),
        (LAST, {"preparation": {"normalization": "nfc"}}, "group g0002 (1 of 5 shards)"),
        (LAST, {"preparation": {"duplicates": {"near": True}}}, f"group g0002 (1 of 5 shards){PREPARED}"),
        (
            SECOND,
            {"preparation": {"duplicates": {"exact": True}}},
            f"group g0001 (2 of 5 shards){BOTH}",
        ),
        (LAST, {"preparation": {"decontamination": {"ngram": 13}}}, f"group g0002 (1 of 5 shards){PREPARED}"),
    ],
)
def test_other_groups_are_named_where_documents_of_one_decide_about_those_of_another(now: CorpusPlan, corpus: Mapping[str, Any], said: str) -> None:
    """The first of equal texts stays, so only groups behind a changed one can gain or lose a copy."""
    raw, shards = differences(BEFORE, now), shards_of(0, 0, 1, 1, 2)
    assert raw.shards(shards, config=config_with(corpus={"sources": ["x"], **corpus}, **GIVEN)) == f"cut anew at most: {said}"


def test_a_tokenizer_that_is_given_cannot_come_out_another() -> None:
    trained = differences(BEFORE, LAST).shards(shards_of(0, 2), config=config_with())
    assert trained == "cut anew at most: group g0002 (1 of 2 shards); all groups if the tokenizer comes out another"


FILES = 8
GROUPS = re.compile(r"g(\d{4})")


class Site:
    """Raw files of which each also says what all say, and the stages over them up to the shards, made in this process."""

    def __init__(self, root: Path) -> None:
        self.root, self.made = root, 0
        self.text = root / "text"
        self.text.mkdir(parents=True)
        for number in range(FILES):
            self.write(number)
        self.tokenizer: dict[str, Any] = {"vocab_size": 280}
        self.preparation: dict[str, Any] = {}

    def write(self, number: int, *, word: str = "water", common: str = "what everybody says") -> None:
        """Writes a file."""
        texts = [f"{word} {line} of file {number}" for line in range(30)] + [common]
        (self.text / f"part-{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    @property
    def config(self) -> RunConfig:
        """The recipe."""
        gate = {"max_tokens_per_word": 50, "min_bytes_per_token": 0.1}
        return config_with(
            corpus={"sources": [{"path": str(self.text), "name": "web"}], "group_bytes": 2500, "preparation": self.preparation},
            tokenizer=gate | self.tokenizer,
            tokenization={"sequence_length": 32, "sequences_per_shard": 64},
            storage={"root": str(self.root / "data")},
            state=str(self.root / "state"),
        )

    def give_tokenizer(self, record: ArtifactRecord) -> None:
        """Has the recipe name a tokenizer that was trained."""
        (self.root / "given.json").write_bytes((self.root / "data" / record.key / "tokenizer.json").read_bytes())
        self.tokenizer = {"path": str(self.root / "given.json")}

    def run(self, *, until: Stage = Stage.TOKENIZE) -> dict[Stage, ArtifactRecord]:
        """Finds or makes the stages, as a run does, and returns their records."""
        (self.root / "data").mkdir(exist_ok=True)
        config, store, found = self.config, Store(FileStorage(self.root / "data")), dict[Stage, ArtifactRecord]()
        for stage in config.stages[: config.stages.index(until) + 1]:
            inputs = {source: found[source] for source in config.inputs_of(stage)}
            contents = {source: record.content_hash for source, record in inputs.items()}
            identity = identity_of(stage, config=config, inputs=contents, hashes=PlainHashes())
            found[stage] = store.find(identity) or self._make(stage, store, inputs)
        return found

    def _make(self, stage: Stage, store: Store, inputs: Mapping[Stage, ArtifactRecord]) -> ArtifactRecord:
        work = CorpusWork(self.root / "data", stage, self.config, inputs)
        identity = work.identity
        work = replace(work, key=store.place(identity, rebuild=False))
        record = commit(work.root, stage, importlib.import_module(f"tasks.{stage.value}.build").build(work), key=work.key)
        self.made += 1
        provenance = record.provenance.model_copy(update={"created_at": f"2026-01-01T00:{self.made:02}:00+00:00"})
        refs = tuple(record.ref() for record in inputs.values())
        known = {"fingerprint": identity.fingerprint, "inputs": refs, "outside": identity.outside, "recipe": identity.recipe}
        return store.commit(record.model_copy(update={**known, "provenance": provenance}))

    def reasons(self, stage: Stage) -> tuple[str, ...]:
        """What the plan says of a stage."""
        return make_plan(self.config).stage(stage).reasons

    def cut(self) -> str:
        """What the plan says of shards; empty: nothing."""
        return next((reason for reason in self.reasons(Stage.TOKENIZE) if reason.startswith("cut anew")), "")

    def files_by_group(self) -> dict[int, list[int]]:
        """The numbers of files by group."""
        corpus = Store(FileStorage(self.root / "data")).newest(Stage.VALIDATE, "test")
        assert corpus is not None
        groups = CorpusPlan.model_validate_json((self.root / "data" / corpus.key / "plan.json").read_bytes()).groups
        return {group.index: [int(file.relative_path[5]) for file in group.inputs] for group in groups}

    def groups_cut(self, before: ArtifactRecord, after: ArtifactRecord) -> set[int]:
        """The groups of which shards were not taken over."""
        manifests = (
            ShardManifest.model_validate_json((self.root / "data" / record.key / "manifest.json").read_bytes()) for record in (before, after)
        )
        old, new = ({(shard.group, shard.split, shard.source_xxh3) for shard in manifest.shards} for manifest in manifests)
        return {group for group, _, _ in new - old}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    judge_leniently(monkeypatch)
    monkeypatch.setattr(judging, "judge", lambda *_, **__: judging.Judgement(judging.Verdict.PASS, 1, ()))
    return Site(tmp_path / "site")


def named(line: str) -> set[int]:
    """The groups that a line names."""
    return {int(group) for group in GROUPS.findall(line)}


def test_a_duplicate_that_comes_back_is_foretold(site: Site) -> None:
    """The first copy goes with the change, so the next group of which it was removed has it from then on."""
    before = site.run()
    groups = site.files_by_group()
    first = min(groups)
    for number in groups[first]:
        site.write(number, common=f"what file {number} says")
    said = site.cut()
    after = site.run()
    cut = site.groups_cut(before[Stage.TOKENIZE], after[Stage.TOKENIZE])
    assert named(said) == {first} < cut
    assert "and groups in which a duplicate comes back or goes" in said


def test_where_nothing_follows_no_other_group_is_named_or_cut(site: Site) -> None:
    before = site.run()
    site.give_tokenizer(before[Stage.TOKENIZER])
    before = site.run()
    groups = site.files_by_group()
    last = max(groups)
    site.write(groups[last][0], word="Water")
    said = site.cut()
    after = site.run()
    manifest = ShardManifest.model_validate_json((site.root / "data" / before[Stage.TOKENIZE].key / "manifest.json").read_bytes())
    concerned = sum(shard.group == last for shard in manifest.shards)
    assert said == f"cut anew at most: group g{last:04d} ({concerned} of {len(manifest.shards)} shards)"
    assert site.groups_cut(before[Stage.TOKENIZE], after[Stage.TOKENIZE]) == {last}


def test_groups_that_came_back_are_taken_from_the_corpus_before_the_last(site: Site) -> None:
    site.run(until=Stage.VALIDATE)
    groups = site.files_by_group()
    (one, *_, other), total = sorted(groups), len(groups)
    site.write(groups[one][0], word="Water")
    site.run(until=Stage.VALIDATE)
    site.write(groups[one][0])
    site.write(groups[other][0], word="Water")
    said = site.reasons(Stage.VALIDATE)[-1]
    assert said == f"group g{other:04d} of {total} scanned anew, the others taken over"
    assert site.run(until=Stage.VALIDATE)[Stage.VALIDATE].summary["reused_groups"] == total - 1


def test_shards_are_compared_with_the_corpus_that_they_were_cut_of(site: Site) -> None:
    before = site.run()
    groups = site.files_by_group()
    one, *_, other = sorted(groups)
    site.write(groups[one][0], word="Water")
    site.run(until=Stage.VALIDATE)  # and no further
    site.write(groups[other][0], word="Water")
    said = site.cut()
    assert named(said) == {one, other}
    after = site.run()
    assert site.groups_cut(before[Stage.TOKENIZE], after[Stage.TOKENIZE]) >= {one, other}


def change_of_tokenizer(site: Site) -> None:
    given = site.root / "given.json"
    content = json.loads(given.read_text())
    given.write_text(json.dumps(content, indent=1))


def change_of_gate(site: Site) -> None:
    site.tokenizer["min_bytes_per_token"] = 0.2


def change_of_preparation(site: Site) -> None:
    site.preparation = {"normalization": "nfc"}


@pytest.mark.parametrize("change", [change_of_tokenizer, change_of_gate, change_of_preparation])
def test_nothing_is_said_of_shards_where_more_than_raw_files_changed(site: Site, change: Callable[[Site], None]) -> None:
    site.give_tokenizer(site.run()[Stage.TOKENIZER])
    site.run()
    site.write(0, word="Water")
    assert site.cut()
    change(site)
    assert site.cut() == ""


def test_what_prepare_may_do_to_other_groups_is_foretold(site: Site) -> None:
    site.preparation = {"duplicates": {"near": True}}
    site.run()
    groups = site.files_by_group()
    last = max(groups)
    site.write(groups[last][0], word="Water")
    said = site.cut()
    assert named(said) == {last}
    assert "and groups in which prepare refuses other documents than before" in said
    site.preparation = {"duplicates": {"near": True, "threshold": 0.7}}
    assert site.cut() == ""
