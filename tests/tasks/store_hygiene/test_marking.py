"""What stays and what may go, as a pure function of what there is and what is wanted."""

import pytest

from schemas.stage import Stage, inputs_of, stages_of
from tasks.store_hygiene.inventory import ArtifactState, StoredArtifact
from tasks.store_hygiene.marking import Marked, mark
from tasks.store_hygiene.roots import Root

NOW = 1_000_000.0


def artifact(stage: Stage, variant: str = "1", *, state: ArtifactState = ArtifactState.FINISHED, **other: object) -> StoredArtifact:
    inputs = tuple(f"{source.value}/{variant}" for source in inputs_of(stage, prepared=False))
    known: dict[str, object] = {"name": "demo", "owner": "ada@here", "newest_at": 0.0, "inputs": inputs}
    return StoredArtifact(key=f"{stage.value}/{variant}", stage=stage, state=state, **{**known, **other})  # type: ignore[arg-type]


def chain(variant: str = "1") -> list[StoredArtifact]:
    return [artifact(stage, variant) for stage in stages_of(prepared=False)]


def fate(artifacts: list[StoredArtifact], *wanted: str, ours: set[str] | None = None) -> Marked:
    return mark(artifacts, [Root(key, "wanted") for key in wanted], now=NOW, is_ours=ours)


def test_what_nobody_wants_may_go_the_last_made_first() -> None:
    assert fate(chain()).unwanted == tuple(f"{stage.value}/1" for stage in reversed(stages_of(prepared=False)))


def test_a_model_keeps_all_that_it_was_made_from_and_nothing_else() -> None:
    marked = fate([*chain("1"), *chain("2")], "register/1")
    assert set(marked.kept) == {f"{stage.value}/1" for stage in stages_of(prepared=False)}
    assert set(marked.unwanted) == {f"{stage.value}/2" for stage in stages_of(prepared=False)}


def test_every_reason_is_told_the_first_one_first() -> None:
    marked = mark(chain(), [Root("train/1", "pinned"), Root("train/1", "recent"), Root("export/1", "registered")], now=NOW, is_ours=None)
    assert marked.kept["train/1"] == ("pinned", "recent", "export/1 was made from it")
    assert "register/1" in marked.unwanted


def test_a_root_that_is_not_there_keeps_nothing() -> None:
    assert fate(chain(), "train/9").kept == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"busy": "ada@here pid 7 works on it"}, "ada@here pid 7"),
        ({"newest_at": NOW - 60}, "just now"),
        ({"newest_at": NOW + 600}, "just now"),  # another machine's clock
        ({"state": ArtifactState.UNKNOWN}, "not made by Headrace"),
        ({"state": ArtifactState.UNFINISHED, "busy": "the job job-0000 has not said that it ended"}, "job-0000"),
    ],
)
def test_what_keeps_an_artifact_by_itself_keeps_its_inputs_too(change: dict[str, object], says: str) -> None:
    marked = fate([*chain()[:3], artifact(Stage.TRAIN, **change)])
    assert says in marked.kept["train/1"][0]
    assert set(marked.kept) == {"train/1", "tokenize/1", "tokenizer/1", "validate/1"}


def test_what_is_half_removed_or_was_abandoned_long_ago_may_go() -> None:
    states = (ArtifactState.HALF_REMOVED, ArtifactState.UNFINISHED)
    assert len(fate([artifact(Stage.TRAIN, str(number), state=state) for number, state in enumerate(states)]).unwanted) == 2


def test_a_damaged_record_keeps_all_that_its_artifact_may_have_been_made_from() -> None:
    damaged = artifact(Stage.TRAIN, state=ArtifactState.DAMAGED, damage="a byte", inputs=())
    elsewhere = artifact(Stage.EXPORT, "other", name="other", inputs=())
    marked = fate([*chain("1")[:3], *chain("2")[:3], elsewhere, damaged, *chain("1")[4:]])
    assert "a byte" in marked.kept["train/1"][0]
    assert set(marked.kept) == {"train/1"} | {f"{stage.value}/{variant}" for stage in stages_of(prepared=False)[:3] for variant in "12"}
    assert set(marked.unwanted) == {"export/other", "export/1", "evaluate/1", "register/1"}


def test_a_damaged_record_keeps_text_and_tokens_of_other_names_and_no_models() -> None:
    damaged = artifact(Stage.EXPORT, "1", state=ArtifactState.DAMAGED, damage="a byte", inputs=())
    others = [artifact(stage, "2", name="other") for stage in (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE, Stage.TRAIN)]
    assert fate([*others, damaged]).unwanted == ("train/2",)


def test_a_damaged_record_keeps_a_prepared_corpus_and_what_that_was_made_from() -> None:
    damaged = artifact(Stage.TOKENIZE, state=ArtifactState.DAMAGED, damage="a byte", inputs=())
    marked = fate([artifact(Stage.VALIDATE), artifact(Stage.PREPARE, inputs=("validate/1",)), damaged])
    assert set(marked.kept) == {"validate/1", "prepare/1", "tokenize/1"}


def test_of_other_users_nothing_goes_nor_what_theirs_was_made_from() -> None:
    theirs = artifact(Stage.TRAIN, owner="bob@there")
    mine = [*chain()[:3], artifact(Stage.TOKENIZE, "2")]
    marked = fate([*mine, theirs], ours={stored.key for stored in mine})
    assert marked.kept["train/1"] == ("belongs to bob@there",)
    assert set(marked.unwanted) == {"tokenize/2"}
    assert len(fate([*mine, theirs]).unwanted) == 5
