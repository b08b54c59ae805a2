"""One document changes: what is done again is its group, what comes out is what a corpus made anew would hold, byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.frozen import thaw
from schemas.job import ItemRecord
from schemas.manifest import AcceptedFile, ShardManifest
from schemas.stage import Stage
from tasks.entry import ItemTask
from tasks.prepare import job
from tasks.prepare.build import build
from tasks.prepare.reuse import GROUPS_NAME, Donor, PreparedGroups, filter_offers, removal_offers
from tasks.recorded_file import entry_of
from tasks.tokenize.build import build as tokenize
from tasks.tokenizer.corpus import open_corpus
from tests.fakes.in_process_work import InProcessWork
from tests.fakes.preparing import finish, key_of, prepared_config, work_in
from tests.fakes.training_artifact import write_tokenizer
from tests.tasks.prepare.conftest import Prepared, write_accepted
from tests.tasks.prepare.test_build import NEAR, altered, corpus

PREPARATION: dict[str, Any] = {"normalization": "nfkc", "duplicates": NEAR}


class Chain:
    """Corpora that follow each other in one store."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.number = root, -1
        self.filtered: list[int] = []
        original = job._filtered

        def counted(task: ItemTask, group: int) -> Any:
            self.filtered.append(group)
            return original(task, group)

        monkeypatch.setattr(job, "_filtered", counted)

    def prepare(self, documents: Any, preparation: Any = PREPARATION) -> Prepared:
        """Prepares the next corpus; `filtered` then names the groups to whose documents the steps were applied."""
        self.number += 1
        self.filtered.clear()
        write_accepted(self.root, documents, key=key_of(Stage.VALIDATE, self.number))
        work = work_in(self.root, preparation, number=self.number)
        draft = build(work)  # type: ignore[arg-type]  # as far as a stage asks, it is a Work
        finish(work, draft)
        return Prepared(work, draft)

    def afresh(self, documents: Any, preparation: Any = PREPARATION) -> dict[str, str]:
        """Returns the files that the corpus has where nothing was there before."""
        root = self.root / f"afresh-{self.number}"
        write_accepted(root, documents)
        work = work_in(root, preparation)
        return Prepared(work, build(work)).files  # type: ignore[arg-type]


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    return Chain(tmp_path, monkeypatch)


def mixed_corpus() -> Any:
    """Group 2 or 0 holds a near duplicate of the other's, group 1 one of a held-out document."""
    documents = corpus(groups=4)
    documents[0, "train"][5] = altered(documents[2, "train"][5], changes=3)
    documents[1, "train"][6] = altered(documents[3, "test"][0], changes=3)
    return documents


def test_of_a_changed_document_its_group_alone_is_done_again(chain: Chain) -> None:
    documents = mixed_corpus()
    first = chain.prepare(documents)
    assert chain.filtered == [0, 1, 2, 3]
    documents[3, "train"][7] += " and more"
    second = chain.prepare(documents)
    assert chain.filtered == [3]
    assert second.draft.summary["reused_groups"] == 3
    assert second.files == chain.afresh(documents)
    before, after = ({file.file.path: file.file.xxh3 for file in done.manifest.files} for done in (first, second))
    assert {path for path in before if before[path] != after[path]} == {"accepted/g0003-train.parquet"}
    assert "3 groups taken over from earlier artifacts" in second.work.notes


def test_an_offer_says_what_the_item_says_that_takes_it(chain: Chain) -> None:
    documents = mixed_corpus()
    first = chain.prepare(documents)
    documents[3, "train"][7] += " and more"
    work = chain.prepare(documents).work
    groups: dict[int, list[AcceptedFile]] = {}
    for file in open_corpus(work.input_dir(Stage.VALIDATE), manifest=entry_of(work.inputs[Stage.VALIDATE], "manifest.json")).manifest.files:
        groups.setdefault(file.group, []).append(file)
    donor = Donor(folder=first.work.output_dir.name, groups=next(file for file in first.draft.files if file.path == GROUPS_NAME))

    def said(step: str, index: int) -> Any:
        return ItemRecord.model_validate_json(work.storage.read(work.layout.item(step, index)))

    filtered = list(filter_offers(frozenset(groups), storage=work.storage, groups=groups, donors=[donor]))
    assert [offer.index for offer in filtered] == [0, 1, 2]
    for offer in filtered:
        record = said("filter", offer.index)
        assert (offer.key, offer.files, offer.output) == (first.work.key, record.files, thaw(record.output))
    records = PreparedGroups.model_validate_json((first.work.output_dir / GROUPS_NAME).read_bytes()).groups
    listed = {record.filtered.group: record.listed for record in records if record.listed is not None}
    concerned = {group: groups[group] for group in sorted(listed)}
    wanted = frozenset(range(len(concerned)))
    removed = list(removal_offers(wanted, storage=work.storage, groups=concerned, donors=[donor], listed=listed))
    assert len(removed) == len(concerned) > 1
    for offer in removed:
        record = said("remove-duplicates", offer.index)
        assert (offer.files, offer.output) == (record.files, thaw(record.output))
    assert list(removal_offers(wanted, storage=work.storage, groups=concerned, donors=[donor], listed=dict.fromkeys(listed, "other"))) == []


@pytest.mark.slow
def test_a_group_whose_duplicates_are_others_now_is_done_again_too(chain: Chain) -> None:
    documents = mixed_corpus()
    chain.prepare(documents)
    documents[3, "test"][0] = "something else altogether " + documents[3, "test"][0][::-1]  # so the one in group 1 resembles nothing any more
    second = chain.prepare(documents)
    assert sorted(chain.filtered) == [1, 3]
    assert second.files == chain.afresh(documents)
    documents[0, "train"][0] = altered(documents[2, "train"][9], changes=2)  # a new one, in a group that had one already
    third = chain.prepare(documents)
    assert third.files == chain.afresh(documents)
    assert third.manifest.quarantined == 2


@pytest.mark.slow
def test_other_limits_of_likeness_use_the_same_signatures(chain: Chain) -> None:
    documents = mixed_corpus()
    chain.prepare(documents)
    strict = {"normalization": "nfkc", "duplicates": {"near": True, "threshold": 0.97}}
    second = chain.prepare(documents, strict)
    assert second.manifest.quarantined == 0
    assert sorted(chain.filtered) == sorted({0, 1, 2} & set(chain.filtered)), "only groups of which documents had been removed"
    assert second.files == chain.afresh(documents, strict)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed", [{"normalization": "nfc", "duplicates": NEAR}, {"normalization": "nfkc", "duplicates": NEAR | {"shingle": 4}}], ids=["step", "shingle"]
)
def test_other_steps_take_nothing_over(chain: Chain, changed: Any) -> None:
    documents = mixed_corpus()
    chain.prepare(documents)
    chain.prepare(documents, changed)
    assert chain.filtered == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["signatures/g0001.parquet", "accepted/g0003-train.parquet"])
def test_what_is_damaged_in_an_earlier_artifact_is_made_again(chain: Chain, victim: str) -> None:
    documents = mixed_corpus()
    first = chain.prepare(documents)
    path = first.folder / victim
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    documents[2, "test"][1] += " and more"
    second = chain.prepare(documents)
    assert len(chain.filtered) > 1
    assert second.files == chain.afresh(documents)


def test_of_the_groups_whose_documents_are_the_same_tokenize_takes_over_the_shards(chain: Chain) -> None:
    documents = mixed_corpus()
    tokenizer = write_tokenizer(chain.root, documents[0, "train"], vocab_size=300)
    reused = []
    for number in range(2):
        done = chain.prepare(documents)
        prepared = finish(done.work, done.draft)
        config = prepared_config(PREPARATION)
        inputs = {Stage.PREPARE: prepared, Stage.TOKENIZER: tokenizer}
        work = InProcessWork(chain.root, Stage.TOKENIZE, config, inputs, key=key_of(Stage.TOKENIZE, number))
        draft = tokenize(work)  # type: ignore[arg-type]
        finish(work, draft)
        reused.append(draft.summary["reused_shards"])
        documents[3, "train"][7] += " and more"
    shards = ShardManifest.model_validate_json((chain.root / key_of(Stage.TOKENIZE, 1) / "manifest.json").read_bytes()).shards
    assert reused == [0, len([shard for shard in shards if (shard.group, shard.split) != (3, "train")])]
    assert json.loads((chain.root / key_of(Stage.PREPARE, 1) / "stats.json").read_text())["total"]["read"] == 4 * 23
