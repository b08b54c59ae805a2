"""The stage as a whole: what stays, what is refused and why, and that equal input gives equal bytes however it was worked on."""

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.storage import hash_file
from schemas.errors import InputError, VerificationError
from schemas.manifest import Split
from schemas.recipe_config import EvaluationConfig
from tasks.prepare.build import build
from tests.fakes.in_process_work import doc_id
from tests.tasks.prepare.conftest import VALIDATED, Documents, Prepare, Prepared, work_on

NEAR = {"near": True, "threshold": 0.7}
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("l", "n", "r", "st", "")]


def prose(seed: int, *, words: int = 120) -> str:
    """A text of pseudo-words, which shares no shingle with that of another seed."""
    chosen = random.Random(seed).choices(WORDS, k=words)
    return " ".join(chosen)


def altered(text: str, *, changes: int, seed: int = 0) -> str:
    """The text with some words replaced."""
    words = text.split()
    for index in random.Random(seed).sample(range(len(words)), changes):
        words[index] = "changed"
    return " ".join(words)


def corpus(groups: int = 3, documents: int = 20) -> dict[tuple[int, Split], list[str]]:
    made: dict[tuple[int, Split], list[str]] = {}
    for group in range(groups):
        made[group, "train"] = [prose(1000 * group + number) for number in range(documents)]
        made[group, "test"] = [prose(1000 * group + 500 + number) for number in range(3)]
    return made


def test_documents_that_nothing_is_done_to_keep_the_bytes_of_their_files(prepare: Prepare) -> None:
    done = prepare(corpus(), duplicates=NEAR)
    accepted = {path.name: hash_file(path) for path in (done.work.root / VALIDATED / "accepted").iterdir()}
    assert {file.file.path.removeprefix("accepted/"): file.file.xxh3 for file in done.manifest.files} == accepted
    assert (done.manifest.read, done.manifest.accepted, done.manifest.quarantined) == (69, 69, 0)


def test_all_that_is_read_is_accepted_or_in_quarantine_with_its_place_and_reason(prepare: Prepare) -> None:
    documents = corpus()
    documents[0, "train"][3] = "\u202f\x00\x01"  # nothing is left of it
    documents[1, "train"][4] = "ﬁne ﬂour " + prose(7777)
    documents[2, "train"][5] = altered(documents[0, "train"][0], changes=3)
    done = prepare(documents, normalization="nfkc", duplicates=NEAR)
    manifest = done.manifest
    assert manifest.read == 69 == manifest.accepted + len(done.quarantined) == manifest.accepted + manifest.quarantined
    places = {(row["path"], row["row"]): row["reason"] for row in done.quarantined}
    assert places.pop(("g0.jsonl", 3)) == "normalization-empty"
    (((path, row), reason),) = places.items()
    assert ((path, row) in {("g0.jsonl", 0), ("g2.jsonl", 5)}, reason) == (True, "near-duplicate")
    assert any(row["text"].startswith("fine flour") for row in done.rows())
    assert manifest.reasons == {"near-duplicate": 1, "normalization-empty": 1}
    (step,) = done.stats.steps
    assert (step.name, step.read, step.changed, step.num_refused) == ("normalization", 69, 1, 1)


def test_a_changed_text_has_the_hash_of_what_it_became_and_keeps_its_split(prepare: Prepare) -> None:
    done = prepare({(0, "train"): [prose(1)], (0, "test"): ["ﬁne " + prose(2)]}, normalization="nfkc")
    (row,) = done.rows("test")
    assert row["text"].startswith("fine")
    assert row["doc_id"] == doc_id(row["text"])


def test_exact_duplicates_are_those_of_the_texts_after_the_steps(prepare: Prepare) -> None:
    texts = [prose(1) + " ﬁn", prose(1) + " fin", prose(2)]
    assert len(prepare({(0, "train"): texts}, duplicates={"exact": True}).texts()) == 3
    done = prepare({(0, "train"): texts}, normalization="nfkc", duplicates={"exact": True})
    assert len(done.texts()) == 2
    assert [row["reason"] for row in done.quarantined] == ["duplicate"]


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_of_documents_that_resemble_each_other_the_held_out_one_stays(prepare: Prepare, held_out: Split) -> None:
    held = [prose(900 + number) for number in range(12)]
    copies = [altered(text, changes=2, seed=number) for number, text in enumerate(held)]
    done = prepare({(0, "train"): [prose(number) for number in range(9)], (1, "train"): copies, (2, held_out): held}, duplicates=NEAR)
    assert done.texts(held_out) == held
    assert len(done.texts("train")) == 9
    assert done.stats.duplicates is not None
    assert done.stats.duplicates.refused_for_held_out == 12
    assert all(f"stays in {held_out}" in row["detail"] for row in done.quarantined)
    assert {file.group for file in done.manifest.files} == {0, 2}, "of group 1 nothing is left"


def test_a_set_of_many_leaves_one_whatever_the_order_of_the_files(prepare: Prepare) -> None:
    family = [altered(prose(5), changes=1, seed=number) for number in range(8)]
    others = [prose(100 + number) for number in range(8)]
    one = prepare({(0, "train"): family[:4] + others[:4], (1, "train"): family[4:] + others[4:]}, duplicates=NEAR)
    other = prepare({(0, "train"): others[4:] + family[4:][::-1], (1, "train"): others[:4] + family[:4]}, duplicates=NEAR)
    assert sorted(one.texts()) == sorted(other.texts())
    assert len(one.texts()) == 9
    assert one.stats.duplicates is not None
    assert (one.stats.duplicates.clusters, one.stats.duplicates.largest[0].documents) == (1, 8)
    (kept,) = set(one.texts()) & set(family)
    assert one.stats.duplicates.largest[0].kept == next(row["doc_id"] for row in one.rows() if row["text"] == kept)


def test_only_files_that_hold_a_duplicate_are_written_anew(prepare: Prepare) -> None:
    documents = corpus()
    before = prepare(documents, duplicates=NEAR)
    documents[1, "train"][7] = altered(documents[0, "train"][2], changes=2)
    after = prepare(documents, duplicates=NEAR)
    removed_from = {row["path"] for row in after.quarantined}
    same = {file.file.path: file.file.xxh3 for file in before.manifest.files}.items() & {
        file.file.path: file.file.xxh3 for file in after.manifest.files
    }.items()
    assert len(removed_from) == 1
    assert len(same) == len(before.manifest.files) - (1 if removed_from == {"g1.jsonl"} else 2)


def test_what_the_draft_lists_is_all_there_is_and_nothing_is_left_over(prepare: Prepare) -> None:
    documents = corpus()
    documents[1, "train"][7] = altered(documents[0, "train"][2], changes=2)
    done = prepare(documents, normalization="nfc", decontamination={"ngram": 13}, duplicates=NEAR)
    for entry in done.draft.files:
        path = done.folder / entry.path
        assert (hash_file(path), path.stat().st_size) == (entry.xxh3, entry.size)
    present = {path.relative_to(done.folder).as_posix() for path in done.folder.rglob("*") if path.is_file()}
    made_by = {name for name in present if name.startswith("items/") or name.endswith("-plan.json")}
    assert present - made_by == {entry.path for entry in done.draft.files}
    assert not list((done.work.root / "scratch").rglob("*.npy"))
    assert not (done.work.root / "scratch" / "duplicates").exists()


def test_training_text_that_is_in_the_test_split_or_in_a_named_file_is_refused(prepare: Prepare, tmp_path: Path) -> None:
    documents = corpus()
    quoted = documents[0, "test"][0].split()[20:50]
    documents[1, "train"][2] = " ".join([*prose(77).split(), *quoted])
    questions = tmp_path / "questions.jsonl"
    asked = prose(78, words=30)
    questions.write_text(json.dumps({"question": {"text": asked}, "answer": 4}) + "\n")
    documents[2, "train"][6] = f"{prose(79)} {asked.upper()}!"
    against = {"ngram": 13, "files": [str(questions)]}
    done = prepare(documents, decontamination=against)
    assert sorted((row["path"], row["row"], row["reason"]) for row in done.quarantined) == [
        ("g1.jsonl", 2, "contaminated"),
        ("g2.jsonl", 6, "contaminated"),
    ]
    assert done.texts("test") == [text for (_, split), texts in documents.items() if split == "test" for text in texts]
    assert done.stats.compared_with == {"questions.jsonl": 1, "test": 9}
    assert done.stats.steps[0].counts == {"shared with questions.jsonl": 1, "shared with test": 1}
    assert len(prepare(documents, decontamination={"ngram": 13}).quarantined) == 1


def test_the_validation_split_and_the_prompts_are_compared_with_where_the_recipe_says_so(tmp_path: Path) -> None:
    documents = corpus(1)
    prompt = prose(79, words=20)
    documents[0, "validation"] = [prose(80), prose(81)]
    documents[0, "train"][2] = f"{prose(82)} {' '.join(documents[0, 'validation'][1].split()[30:50])}"
    documents[0, "train"][5] = f"{prompt.title()}, {prose(83)}"

    def prepared(**against: object) -> Prepared:
        work = work_on(tmp_path / "-".join(against), documents, decontamination={"ngram": 13, **against})
        asked = EvaluationConfig(prompts=("def ", prompt))
        work.config = work.config.model_copy(update={"evaluation": asked})
        return Prepared(work, build(work))  # type: ignore[arg-type]

    assert prepared(test_split=True).quarantined == []
    done = prepared(validation_split=True, prompts=True)
    assert [(row["row"], row["reason"]) for row in done.quarantined] == [(2, "contaminated"), (5, "contaminated")]
    assert f"of validation/{doc_id(documents[0, 'validation'][1])}" in done.quarantined[0]["detail"]
    assert done.quarantined[1]["detail"].endswith("of evaluation.prompts:2")
    assert done.stats.compared_with == {"evaluation.prompts": 2, "test": 3, "validation": 2}
    assert done.stats.steps[0].counts == {"shared with evaluation.prompts": 1, "shared with validation": 1}
    assert done.texts("validation") == documents[0, "validation"]


def test_that_there_is_little_to_compare_with_is_said(prepare: Prepare) -> None:
    done = prepare({(0, "train"): [prose(1)]}, decontamination={"ngram": 13})
    assert done.work.notes[0] == "compared with 0 texts, 0 n-grams of 13 words"
    assert done.manifest.accepted == 1
    done = prepare({(0, "train"): [prose(1)], (0, "test"): ["too short", prose(2, words=14)]}, decontamination={"ngram": 13})
    assert done.work.notes[0] == "compared with 2 texts (test 2), 2 n-grams of 13 words; 1 texts have fewer words, so nothing can be found of them"


def test_a_file_to_compare_with_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    named = tmp_path / "named.txt"
    named.write_text(prose(1))
    work = work_on(tmp_path / "root", corpus(1), decontamination={"ngram": 13, "files": [str(named)]})
    identity = work.identity
    assert identity.inputs["compared"] == identity.outside["compared"]
    named.write_text(prose(2))
    assert work.identity.fingerprint != identity.fingerprint
    named.unlink()
    with pytest.raises(InputError, match=r"named\.txt: cannot be read"):
        build(work)  # type: ignore[arg-type]


def test_preparation_that_leaves_nothing_says_so(tmp_path: Path) -> None:
    work = work_on(tmp_path, {(0, "train"): ["\x00\x01"], (0, "test"): [prose(1)]}, normalization="nfc")
    with pytest.raises(InputError, match="preparation leaves no training document") as caught:
        build(work)  # type: ignore[arg-type]
    assert "normalization-empty 1" in str(caught.value)


def test_people_are_told_one_line_per_step(prepare: Prepare) -> None:
    documents = corpus()
    documents[1, "train"][7] = documents[0, "test"][1]
    done = prepare(documents, normalization="nfc", duplicates=NEAR)
    assert done.work.notes[-1].startswith("data report: ")
    assert done.work.notes[:-1] == [
        "normalization: 69 documents read, 0 refused",
        "duplicates: 69 documents in 1 sets, the largest of 2, 1 refused (duplicate 1); 1 of them resemble held-out documents",
    ]


def test_a_damaged_accepted_file_stops_the_stage(tmp_path: Path) -> None:
    work = work_on(tmp_path, corpus(1), duplicates=NEAR)
    victim = tmp_path / VALIDATED / "accepted/g0000-train.parquet"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(VerificationError, match="g0000-train"):
        build(work)  # type: ignore[arg-type]


def test_a_second_start_of_the_same_work_runs_nothing_and_gives_the_same(tmp_path: Path) -> None:
    documents: Documents = corpus()
    work = work_on(tmp_path, documents, normalization="nfc", decontamination={"ngram": 13}, duplicates=NEAR)
    first = Prepared(work, build(work))  # type: ignore[arg-type]
    ran = len(work.items_run)
    again = Prepared(work, build(work))  # type: ignore[arg-type]
    assert len(work.items_run) == ran
    assert again.files == first.files
    assert pq.read_table(work.output_dir / first.manifest.files[0].file.path).num_rows == 20
