"""Artifacts are found by content, done only with a record, and a damaged record is named."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.storage import FileStorage
from schemas.artifact import ArtifactRecord, Provenance
from schemas.errors import VerificationError
from schemas.stage import Stage
from tasks.store import Identity, Store, differences

PROVENANCE = Provenance(run_id="r", created_at="2026-01-01T00:00:00+00:00", created_by="me@here", argv=(), commit="", versions={})


def identity(**recipe: object) -> Identity:
    return Identity(stage=Stage.VALIDATE, name="demo", recipe=recipe, inputs={"raw": "0" * 64})


def record(what: Identity, key: str, *, content: str = "c" * 64) -> ArtifactRecord:
    return ArtifactRecord(
        stage=what.stage,
        stage_version=1,
        name=what.name,
        key=key,
        fingerprint=what.fingerprint,
        content_hash=content,
        inputs=(),
        recipe=what.recipe,
        files=(),
        summary={"n": 1},
        provenance=PROVENANCE,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(FileStorage(tmp_path))


def test_nothing_is_found_before_the_record(store: Store) -> None:
    what = identity(a=1)
    key = store.place(what, rebuild=False)
    store.storage.create_exclusive(f"{key}/manifest.json", b"{}")
    assert store.find(what) is None
    assert store.place(what, rebuild=False) == key, "an unfinished folder is continued"


def test_a_record_is_found_again_and_only_by_its_own_recipe(store: Store) -> None:
    what = identity(a=1)
    committed = store.commit(record(what, store.place(what, rebuild=False)))
    assert store.find(what) == committed
    assert store.find(identity(a=2)) is None


def test_text_and_tokens_are_found_under_any_recipes_name_a_model_under_its_own(store: Store) -> None:
    for stage, is_shared in ((Stage.VALIDATE, True), (Stage.PREPARE, True), (Stage.TOKENIZER, True), (Stage.TOKENIZE, True), (Stage.TRAIN, False)):
        mine, theirs = (replace(identity(a=1), stage=stage, name=name) for name in ("mine", "theirs"))
        assert mine.fingerprint == theirs.fingerprint, "a name says nothing about the content"
        made = store.commit(record(theirs, store.place(theirs, rebuild=False)))
        assert store.find(mine) == (made if is_shared else None)
        own = store.commit(record(mine, store.place(mine, rebuild=False)))
        assert (store.find(mine), store.find(theirs)) == (own, made), "one's own comes first"


def test_an_unfinished_one_under_another_name_is_not_gone_on_with(store: Store) -> None:
    mine, theirs = identity(a=1), replace(identity(a=1), name="theirs")
    store.storage.create_exclusive(f"{store.place(theirs, rebuild=False)}/manifest.json", b"{}")
    assert store.find(mine) is None
    assert store.place(mine, rebuild=False).startswith(f"{mine.stage.value}/{mine.name}-")


def test_a_damaged_or_closed_one_under_another_name_stops_nobody_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = identity(a=1), replace(identity(a=1), name="theirs")
    key = store.place(theirs, rebuild=False)
    store.commit(record(theirs, key))
    path = Path(store.storage.root) / key / "record.json"  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes().replace(b"demo", b"dem0", 1).replace(b"theirs", b"their5", 1))
    assert store.find(mine) is None
    with pytest.raises(VerificationError):
        store.find(theirs)

    def closed(_: str) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.storage, "exists", closed)
    assert store.find(mine) is None


def test_the_highest_rebuild_with_a_record_wins(store: Store) -> None:
    what = identity(a=1)
    store.commit(record(what, store.place(what, rebuild=False)))
    second = store.place(what, rebuild=True)
    assert second.endswith(".r1")
    found = store.find(what)
    assert found is not None
    assert not found.key.endswith(".r1")
    store.commit(record(what, second))
    assert store.find(what).key == second  # type: ignore[union-attr]
    assert store.place(what, rebuild=True).endswith(".r2")


def test_every_flipped_byte_of_a_record_is_found(store: Store) -> None:
    what = identity(a=1)
    committed = store.commit(record(what, store.place(what, rebuild=False)))
    path = store.storage.local_path(f"{committed.key}/record.json")
    assert path is not None
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(VerificationError, match=r"record\.json"):
            store.read(committed.key)


def test_two_writers_with_equal_content_agree(store: Store) -> None:
    what = identity(a=1)
    key = store.place(what, rebuild=False)
    first = store.commit(record(what, key))
    assert store.commit(record(what, key)) == first


def test_two_writers_with_different_content_are_told(store: Store) -> None:
    what = identity(a=1)
    key = store.place(what, rebuild=False)
    store.commit(record(what, key))
    with pytest.raises(VerificationError, match="holds content"):
        store.commit(record(what, key, content="d" * 64))


def test_differences_name_every_field() -> None:
    old = {"training": {"steps": 10, "seed": 1}, "model": {"size": 1}}
    new = {"training": {"steps": 20, "seed": 1}, "model": {"size": 1, "depth": 2}}
    assert differences(old, new) == ("model.depth: null -> 2", "training.steps: 10 -> 20")


def test_differences_go_into_lists_of_equal_length() -> None:
    web, code = {"name": "web", "exclude": []}, {"name": "code", "exclude": []}
    changed = {"sources": [web, code | {"exclude": ["*.md"]}]}
    assert differences({"sources": [web, code]}, changed) == ('sources.1.exclude: [] -> ["*.md"]',)
    (line,) = differences({"sources": [web]}, changed)
    assert line.startswith("sources: [{")
