"""A trained tokenizer is a valid byte-level BPE, the same for any number of threads, as large as the text allows."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from schemas.errors import ConfigError, InputError
from schemas.tokens_config import TokenizerConfig
from tasks.tokenizer.bpe import train_bpe
from tasks.tokenizer.engine import GigatokenEngine, HuggingFaceEngine, facts_of

PATTERNS = ("gpt2", "llama3", "qwen2")


def small(**fields: object) -> TokenizerConfig:
    return TokenizerConfig.model_validate({"vocab_size": 320} | fields)


@pytest.fixture(scope="module", params=PATTERNS)
def trained(request: pytest.FixtureRequest, texts: list[str]) -> bytes:
    return train_bpe(texts, config=small(pattern=request.param)).tokenizer_json


def test_it_has_the_vocabulary_asked_for_with_every_byte_and_the_special_tokens(texts: list[str]) -> None:
    made = train_bpe(texts, config=small(special_tokens=("<|user|>", "<|endoftext|>")))
    tokenizer = Tokenizer.from_str(made.tokenizer_json.decode())
    assert made.vocab_size == 320 == tokenizer.get_vocab_size(with_added_tokens=True)
    assert sorted(tokenizer.get_vocab().values()) == list(range(320))
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    assert special == {"<|endoftext|>", "<|user|>"}


@given(text=st.text(max_size=60))
@settings(max_examples=60)
def test_any_text_comes_back_and_both_engines_give_equal_ids(trained: bytes, text: str) -> None:
    reference, fast = HuggingFaceEngine(trained), GigatokenEngine(trained)
    ids = reference.encode([text]).of(0)
    assert reference.decode(ids) == text
    assert fast.encode([text]).of(0) == ids


def test_text_that_spells_a_special_token_stays_text(trained: bytes) -> None:
    end = facts_of(trained, end_of_text="<|endoftext|>", subject="it").end_of_text_id
    for engine in (HuggingFaceEngine(trained), GigatokenEngine(trained)):
        ids = engine.encode(["before<|endoftext|>after"]).of(0)
        assert end not in ids
        assert HuggingFaceEngine(trained).decode(ids) == "before<|endoftext|>after"


def test_a_minimum_frequency_that_no_pair_reaches_merges_nothing(texts: list[str]) -> None:
    made = train_bpe(texts, config=small(min_frequency=10**9))
    assert json.loads(made.tokenizer_json)["model"]["merges"] == []
    assert (made.vocab_size, made.trainer) == (257, "huggingface")


def test_a_text_too_small_for_the_vocabulary_gives_a_smaller_one() -> None:
    made = train_bpe(["hello hello hello world world"], config=small(vocab_size=5000))
    assert 257 < made.vocab_size < 300
    assert made.trainer == "huggingface"  # the only one that stops at the minimum frequency


def test_no_merge_is_rarer_than_the_minimum(texts: list[str]) -> None:
    made = train_bpe(texts, config=small(vocab_size=4000, min_frequency=20))
    merges = json.loads(made.tokenizer_json)["model"]["merges"]
    engine = HuggingFaceEngine(made.tokenizer_json)
    last = engine.tokenizer.token_to_id("".join(merges[-1]))
    assert last == made.vocab_size - 1
    assert engine.encode(texts).ids.tolist().count(last) >= 20


def test_no_text_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no text"):
        train_bpe(["", ""], config=small())


def test_a_vocabulary_without_room_for_bytes_and_special_tokens_names_the_least_size() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size = 258.*nearest valid: 260"):
        train_bpe(["text"], config=small(vocab_size=258, special_tokens=("<a>", "<b>", "<c>")))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["gpt2", "llama3"])
def test_bytes_do_not_depend_on_threads_or_process(tmp_path: Path, texts: list[str], pattern: str) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(texts * 20))
    source = str(tmp_path / "texts.json")
    program = (
        "import json, sys; from pathlib import Path; from schemas.config import TokenizerConfig; from tasks.tokenizer.bpe import train_bpe\n"
        f"made = train_bpe(json.loads(Path({source!r}).read_text()), config=TokenizerConfig(vocab_size=400, pattern={pattern!r}))\n"
        "sys.stdout.buffer.write(b'|' + made.tokenizer_json)"
    )
    digests = set()
    for threads in ("1", "2", "7"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, timeout=120)
        digests.add(hashlib.sha256(done.stdout.partition(b"|")[2]).hexdigest())
    assert len(digests) == 1
