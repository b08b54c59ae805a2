"""Texts that documents are compared with: read in full or refused, and known by their content."""

import json
from pathlib import Path

import pytest

from cluster.storage import hash_file
from schemas.corpus_config import CorpusConfig
from schemas.errors import InputError, VerificationError
from tasks.prepare.compared import files_hash
from tasks.prepare.held_out import IndexOutput, build_index
from tasks.prepare.ngram_index import NgramIndex, ngrams_of
from tests.tasks.prepare.test_build import prose


def index(folder: Path, *files: Path, expected: str | None = None) -> IndexOutput:
    against = {"ngram": 13, "test_split": False, "files": [str(file) for file in files]}
    config = CorpusConfig.model_validate({"sources": ["nowhere"], "preparation": {"normalization": "nfkc", "decontamination": against}})
    (folder / "out/ngrams").mkdir(parents=True, exist_ok=True)
    return build_index(
        (),
        folder=folder,
        config=config,
        expected_files=files_hash(against["files"], hash_file) if expected is None else expected,  # type: ignore[arg-type]
        scratch_dir=folder,
        output_dir=folder / "out",
        temporary=lambda name: folder / "out" / f"{name}.unfinished",
    )


def test_every_string_of_json_lines_counts_and_a_text_file_is_one_text(tmp_path: Path) -> None:
    lines, text = tmp_path / "questions.jsonl", tmp_path / "story.txt"
    records = [{"question": prose(1), "choices": [prose(2), {"text": prose(3)}], "answer": 2}, prose(4)]
    lines.write_text("\n\n".join(json.dumps(record) for record in records))
    text.write_text(prose(5) + "\n\n" + prose(6))
    found = index(tmp_path, lines, text)
    assert found.texts == {"questions.jsonl": 4, "story.txt": 1}
    loaded = NgramIndex.load(tmp_path / "out/ngrams")
    for seed in range(1, 7):
        assert loaded.find(ngrams_of([prose(seed)], n=13).hashes).all()
    assert not loaded.find(ngrams_of([prose(7)], n=13).hashes).any()
    assert loaded.owner_of(ngrams_of([prose(4)], n=13).hashes[0]) == ("questions.jsonl:3", "questions.jsonl")


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b'{"broken'), ("a.jsonl", b"\xff\xfe"), ("a.txt", b"caf\xe9")])
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match="1 of 1 cannot be compared with") as caught:
        index(tmp_path, path)
    assert f"    {path}: " in caught.value.what
    assert "corpus.preparation.decontamination.files" in caught.value.mend


def test_all_files_that_are_not_what_their_names_say_are_named_at_once(tmp_path: Path) -> None:
    contents = {
        "latin.txt": b"caf\xe9",
        "fine.txt": prose(1).encode(),
        "broken.jsonl": b'"fine"\n\n{"broken',
        "deep.jsonl": b"[" * 100_000,
        "long.jsonl": b"9" * 5000,
        "fine.jsonl": b'"fine"',
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="4 of 6 cannot be compared with") as caught:
        index(tmp_path, *(tmp_path / name for name in contents))
    assert f"{tmp_path}/latin.txt: not UTF-8" in caught.value.what
    assert f"{tmp_path}/broken.jsonl: line 3 cannot be read as JSON: Unterminated string starting at in column 2" in caught.value.what
    assert f"{tmp_path}/deep.jsonl: line 1 cannot be read as JSON" in caught.value.what
    assert f"{tmp_path}/long.jsonl: line 1 cannot be read as JSON: Exceeds the limit" in caught.value.what


def test_another_file_on_this_node_than_was_planned_with_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(prose(1))
    planned = files_hash([str(path)], hash_file)
    path.write_text(prose(2))
    with pytest.raises(VerificationError, match="not those that the stage was planned with"):
        index(tmp_path, path, expected=planned)
