"""An existing tokenizer is taken byte by byte, and nothing but JSON and the chat template inside its folder is opened."""

import json
from pathlib import Path

import pytest

from cluster.storage import hash_file
from schemas.errors import InputError, UnsafeFileError
from schemas.tokens_config import TokenizerConfig
from tasks.tokenize.conversation import ChatTemplate
from tasks.tokenizer.bpe import train_bpe
from tasks.tokenizer.engine import facts_of
from tasks.tokenizer.existing import existing_hash, read_existing
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


NAMED = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}]


@pytest.mark.parametrize(("stored", "expected"), [(None, "x\n"), ("x", "x"), (NAMED, NAMED), (NAMED[1:], "x\n")])
def test_a_chat_template_in_a_file_of_its_own_is_taken(tmp_path: Path, tokenizer_json: bytes, stored: object, expected: object) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json)
    before = existing_hash(tmp_path, hash_file)
    (tmp_path / "chat_template.jinja").write_text("x\n")
    assert existing_hash(tmp_path, hash_file) != before
    if stored is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))
    assert read_existing(tmp_path).config == {"chat_template": expected}
    assert read_existing(tmp_path / "tokenizer.json").config == {}


def test_a_folder_that_transformers_saves_is_read_as_transformers_reads_it(tmp_path: Path, tokenizer_json: bytes) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    template = "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
    saved = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer_json.decode()), eos_token="</s>")
    saved.chat_template = template
    saved.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").exists()
    made = tokenizer_config(read_existing(tmp_path).config, end_of_text="</s>")
    assert ChatTemplate.of_tokenizer(made).source == template


def test_two_chat_templates_that_differ_are_refused_unless_the_recipe_has_its_own(tmp_path: Path, tokenizer_json: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    (tmp_path / "chat_template.jinja").write_text("y")
    with pytest.raises(InputError, match=r"chat_template\.jinja and the chat_template of .*tokenizer_config\.json differ") as caught:
        read_existing(tmp_path)
    assert "transformers takes the file" in caught.value.why
    assert "tokenizer.chat_template" in caught.value.mend
    assert read_existing(tmp_path, own_template=True).config == {"chat_template": "x"}


def test_a_chat_template_is_text_and_lies_in_its_folder(tmp_path: Path, tokenizer_json: bytes) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside.jinja"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"chat_template\.jinja is not UTF-8"):
        read_existing(folder)
    outside.write_text("x")
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to(outside)
    with pytest.raises(UnsafeFileError, match=r"is a link to .*outside\.jinja"):
        read_existing(folder)


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


def test_a_tokenizer_that_may_not_be_read_is_an_input_error(tmp_path: Path, tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json)
    monkeypatch.setattr("tasks.tokenizer.existing.os.access", lambda path, mode: False)  # root may read everything
    with pytest.raises(InputError, match="cannot be read"):
        read_existing(tmp_path)


def test_a_missing_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="save_pretrained"):
        read_existing(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_existing(tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 1}', b"\xff\xfe", b"null"])
def test_what_is_no_tokenizer_is_an_input_error(content: bytes) -> None:
    with pytest.raises(InputError, match="it cannot be loaded"):
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
