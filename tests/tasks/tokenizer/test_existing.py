"""An existing tokenizer is taken byte by byte, and nothing but JSON inside its folder is opened."""

import json
from pathlib import Path

import pytest

from schemas.errors import InputError, UnsafeFileError
from schemas.recipe_config import TokenizerConfig
from tasks.tokenizer.bpe import train_bpe
from tasks.tokenizer.engine import facts_of
from tasks.tokenizer.existing import read_existing
from tasks.tokenizer.folder import tokenizer_config


@pytest.fixture(scope="module")
def tokenizer_json(texts: list[str]) -> bytes:
    return train_bpe(texts, config=TokenizerConfig(vocab_size=300, end_of_text="</s>")).tokenizer_json


def test_a_file_and_a_folder_give_the_same_bytes(tmp_path: Path, tokenizer_json: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert read_existing(tmp_path).tokenizer_json == tokenizer_json == read_existing(tmp_path / "tokenizer.json").tokenizer_json
    assert read_existing(tmp_path).config == {"chat_template": "x"}
    assert read_existing(tmp_path / "tokenizer.json").config == {}  # only what was named has a part in the identity


def test_a_link_within_the_folder_is_followed_and_one_that_leaves_it_is_refused(tmp_path: Path, tokenizer_json: bytes) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside.json"
    folder.mkdir()
    (folder / "real.json").write_bytes(tokenizer_json)
    (folder / "tokenizer.json").symlink_to("real.json")
    assert read_existing(folder).tokenizer_json == tokenizer_json
    outside.write_bytes(tokenizer_json)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(outside)
    with pytest.raises(UnsafeFileError, match=r"is a link to .*outside\.json"):
        read_existing(folder)


@pytest.mark.parametrize("name", ["tokenizer.pkl", "vocab.pt"])
def test_pickles_are_refused(tmp_path: Path, tokenizer_json: bytes, name: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json)
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeFileError, match="looks like a pickle"):
        read_existing(tmp_path)
    with pytest.raises(UnsafeFileError, match="looks like a pickle"):
        read_existing(tmp_path / name)


def test_a_missing_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="save_pretrained"):
        read_existing(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_existing(tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 1}', b"\xff\xfe", b"null"])
def test_what_is_no_tokenizer_is_an_input_error(content: bytes) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be loaded"):
        facts_of(content, end_of_text="</s>", subject="it")


@pytest.mark.parametrize("content", ["[1]", "{", "null"])
def test_a_broken_configuration_is_an_input_error(tmp_path: Path, tokenizer_json: bytes, content: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer_config\.json"):
        read_existing(tmp_path)


def test_a_tokenizer_without_the_end_of_text_token_is_refused_with_those_it_has(tokenizer_json: bytes) -> None:
    assert facts_of(tokenizer_json, end_of_text="</s>", subject="it").vocab_size == 300
    with pytest.raises(InputError, match=r"no special token '<\|endoftext\|>'[\s\S]*</s>[\s\S]*tokenizer\.end_of_text"):
        facts_of(tokenizer_json, end_of_text="<|endoftext|>", subject="it")


def test_the_configuration_keeps_what_is_data_and_drops_what_names_code() -> None:
    existing = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": "evil.py"}, "chat_template": "t", "bos_token": "<s>", "eos_token": "<old>"}
    made = json.loads(tokenizer_config(existing, end_of_text="</s>"))
    assert made["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert made["eos_token"] == "</s>"
    assert made["bos_token"] == "<s>"
    assert made["chat_template"] == "t"
    assert "auto_map" not in made
