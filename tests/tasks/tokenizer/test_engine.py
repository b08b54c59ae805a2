"""Which engine encodes, and that both see text alike."""

import json

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from schemas.errors import ConfigError, InputError
from schemas.tokens_config import TokenizerConfig
from tasks.tokenizer.bpe import train_bpe
from tasks.tokenizer.engine import GigatokenEngine, HuggingFaceEngine, choose_engine, facts_of, load_tokenizer


@pytest.fixture(scope="module")
def byte_level(texts: list[str]) -> bytes:
    return train_bpe(texts, config=TokenizerConfig(vocab_size=300)).tokenizer_json


@pytest.fixture(scope="module")
def word_piece(texts: list[str]) -> bytes:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[SEP]", "[UNK]"], show_progress=False))
    return str(tokenizer.to_str()).encode()


def test_gigatoken_is_chosen_where_it_knows_the_tokenizer(byte_level: bytes) -> None:
    assert choose_engine(byte_level, wanted="auto").name == "gigatoken"
    assert choose_engine(byte_level, wanted="gigatoken").name == "gigatoken"
    assert choose_engine(byte_level, wanted="huggingface").name == "huggingface"


def test_hugging_face_is_chosen_where_gigatoken_refuses_and_the_reason_is_told(word_piece: bytes) -> None:
    choice = choose_engine(word_piece, wanted="auto")
    assert choice.name == "huggingface"
    assert "WordPiece" in choice.reason


def test_asking_for_gigatoken_where_it_refuses_names_the_key(word_piece: bytes) -> None:
    with pytest.raises(ConfigError, match=r"tokenization\.engine = 'gigatoken'.*WordPiece.*nearest valid: auto"):
        choose_engine(word_piece, wanted="gigatoken")


def test_truncation_padding_and_templates_of_a_tokenizer_add_and_cut_nothing(byte_level: bytes) -> None:
    tokenizer = Tokenizer.from_str(byte_level.decode())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    changed = tokenizer.to_str().encode()
    text = ["a longer text that is cut by nobody"]
    assert HuggingFaceEngine(changed).encode(text).of(0) == HuggingFaceEngine(byte_level).encode(text).of(0)


@pytest.mark.parametrize("documents", [[], [""], ["", "a", ""], ["a\0b", "\n", " "]])
def test_empty_documents_keep_their_place(byte_level: bytes, documents: list[str]) -> None:
    for engine in (HuggingFaceEngine(byte_level), GigatokenEngine(byte_level)):
        encoded = engine.encode(documents)
        assert encoded.offsets.size == len(documents) + 1
        assert encoded.offsets[-1] == encoded.ids.size
        assert encoded.ids.dtype == np.uint32
        assert [HuggingFaceEngine(byte_level).decode(encoded.of(index)) for index in range(len(documents))] == documents


@pytest.mark.parametrize("part", [slice(None), slice(2, 5), slice(1, 1), slice(3, 4)])
def test_a_column_gives_the_ids_of_its_texts(byte_level: bytes, part: slice) -> None:
    texts = ["water", "", "水轮 naïve 🙂", "  \n", "def run():", ""]
    column = pa.array(texts)[part]
    expected = HuggingFaceEngine(byte_level).encode(texts[part])
    for engine in (HuggingFaceEngine(byte_level), GigatokenEngine(byte_level)):
        found = engine.encode_column(column)
        assert np.array_equal(found.ids, expected.ids)
        assert np.array_equal(found.offsets, expected.offsets)


def test_one_thread_gives_the_ids_that_many_give(byte_level: bytes, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    documents, found = [*texts * 20, ""], []
    for threads in ("1", "2"):
        monkeypatch.setenv("RAYON_NUM_THREADS", threads)
        engine = GigatokenEngine(byte_level)
        found += [engine.encode(documents), engine.encode_column(pa.array(documents))]
    for other in found[1:]:
        assert np.array_equal(other.ids, found[0].ids)
        assert np.array_equal(other.offsets, found[0].offsets)


def test_added_tokens_that_are_not_special_are_recognised_by_both(byte_level: bytes) -> None:
    description = json.loads(byte_level)
    added = {"id": 300, "content": "water wheel", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    description["added_tokens"].append(added)
    content = json.dumps(description).encode()
    expected = HuggingFaceEngine(content).encode(["the water wheel flows"]).of(0)
    assert 300 in expected
    assert GigatokenEngine(content).encode(["the water wheel flows"]).of(0) == expected


ADDED = {"id": 300, "content": "wheel", "single_word": True, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"pre_tokenizer": None}, id="no pre-tokenizer"),
        pytest.param({"normalizer": {"type": "NFKC"}}, id="unknown normalizer"),
        pytest.param({"added_tokens": [ADDED]}, id="added token that must be a whole word"),
    ],
)
def test_what_gigatoken_would_encode_otherwise_is_left_to_hugging_face(byte_level: bytes, change: dict[str, object]) -> None:
    choice = choose_engine(json.dumps(json.loads(byte_level) | change).encode(), wanted="auto")
    assert choice.name == "huggingface"
    assert "gigatoken refuses" in choice.reason


def test_a_byte_level_splitter_without_its_pattern_is_left_to_hugging_face(texts: list[str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # merges across words
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False))
    assert "other ids" in choose_engine(tokenizer.to_str().encode(), wanted="auto").reason


def test_a_library_that_panics_is_an_input_error_and_not_a_crash(byte_level: bytes) -> None:
    description = json.loads(byte_level)
    description["model"]["continuing_subword_prefix"] = "##"  # tokenizers 0.23 panics on merges that do not carry it
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer(json.dumps(description).encode())


def test_a_tokenizer_that_encodes_at_random_is_refused(byte_level: bytes) -> None:
    description = json.loads(byte_level)
    description["model"]["dropout"] = 0.1
    with pytest.raises(InputError, match="dropout"):
        facts_of(json.dumps(description).encode(), end_of_text="<|endoftext|>", subject="it")
