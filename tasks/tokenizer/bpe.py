"""Training a byte-level BPE. Equal documents give equal bytes of `tokenizer.json`, whatever the number of threads.

Two trainers make the same kind of tokenizer: gigatoken's, an order of magnitude faster, knows the GPT-2 pattern alone and no minimum
frequency; Hugging Face's does the rest.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from schemas.errors import ConfigError, InputError, Problem
from schemas.tokens_config import TokenizerConfig
from tasks.tokenizer.engine import GigatokenEngine

logger = logging.getLogger(__name__)

NUM_BYTES = 256
_SEPARATOR = b"\0"
"""Between documents, so that no pair is counted across two of them."""
_CHUNK_DOCUMENTS = 1024

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPLITS = {
    "llama3": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Split patterns, spelled as in the tokenizers they are named for: gigatoken recognises a pattern by its text. `gpt2` is built in."""


@dataclass(frozen=True)
class TrainedTokenizer:
    """A trained tokenizer."""

    tokenizer_json: bytes
    """Content of `tokenizer.json`."""
    trainer: Literal["gigatoken", "huggingface"]
    """What trained it."""
    vocab_size: int
    """Its ids: the number asked for, or fewer when the text has no more pairs that are frequent enough."""


def train_bpe(texts: Sequence[str], *, config: TokenizerConfig) -> TrainedTokenizer:
    """Trains a tokenizer of at most `config.vocab_size` ids on `texts`.

    Raises:
        ConfigError: the vocabulary has no room for the bytes and the special tokens.
        InputError: there is no text.
    """
    special_tokens = special_tokens_of(config)
    if not any(texts):
        raise InputError(
            "the training split has no text to train a tokenizer on", mend="add documents, or name an existing tokenizer: tokenizer.path"
        )
    if config.pattern == "gpt2":
        trained = _train_with_gigatoken(texts, config=config, special_tokens=special_tokens)
        if trained is not None:
            return trained
    return _train_with_hugging_face(texts, config=config, special_tokens=special_tokens)


def special_tokens_of(config: TokenizerConfig) -> tuple[str, ...]:
    """Returns the special tokens of a tokenizer to train, the end-of-text token first, each once.

    Raises:
        ConfigError: bytes and special tokens leave no room in the vocabulary.
    """
    tokens = tuple(dict.fromkeys((config.end_of_text, *config.special_tokens)))
    least = NUM_BYTES + len(tokens)
    if config.vocab_size < least:
        message = f"{NUM_BYTES} bytes + {len(tokens)} special tokens = {least} ids do not fit"
        raise ConfigError((Problem("tokenizer.vocab_size", repr(config.vocab_size), message, nearest=str(least)),))
    return tokens


def _train_with_gigatoken(texts: Sequence[str], *, config: TokenizerConfig, special_tokens: tuple[str, ...]) -> TrainedTokenizer | None:
    """Returns the tokenizer, or None when its rarest merge is below the minimum frequency, which this trainer does not know."""
    from gigatoken import train_bpe as train
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    data = _SEPARATOR.join(text.encode() for text in texts)
    vocabulary, merges = train(data, config.vocab_size, list(special_tokens), separator=_SEPARATOR)
    del data
    letters = _byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    first_merge = NUM_BYTES + len(special_tokens)
    ids = {spell(token): index for index, token in vocabulary.items() if index < NUM_BYTES or index >= first_merge}
    ids |= {token: NUM_BYTES + index for index, token in enumerate(special_tokens)}
    if len(ids) != len(vocabulary):  # two merges that spell the same token: no tokenizer.json can say so
        logger.info("gigatoken's vocabulary has a token twice; training with Hugging Face tokenizers")
        return None
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[(spell(left), spell(right)) for left, right in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trained = _finished(tokenizer, special_tokens=special_tokens, trainer="gigatoken")
    if merges and not _occurs(len(vocabulary) - 1, times=config.min_frequency, texts=texts, tokenizer_json=trained.tokenizer_json):
        logger.info("the last merge occurs fewer than %d times; training with Hugging Face tokenizers", config.min_frequency)
        return None
    return trained


def _occurs(token: int, *, times: int, texts: Sequence[str], tokenizer_json: bytes) -> bool:
    """Whether the last merge was frequent enough. No later merge consumes its token, so the encoded text has as many as there were pairs.

    Merges come in order of falling frequency, so all others were frequent enough too. Stops at the first chunk that settles it.
    """
    engine = GigatokenEngine(tokenizer_json)
    found = 0
    for start in range(0, len(texts), _CHUNK_DOCUMENTS):
        encoded = engine.encode(list(texts[start : start + _CHUNK_DOCUMENTS]))
        found += int(np.count_nonzero(encoded.ids == token))
        if found >= times:
            return True
    return False


def _train_with_hugging_face(texts: Sequence[str], *, config: TokenizerConfig, special_tokens: tuple[str, ...]) -> TrainedTokenizer:
    """Returns the tokenizer. About 4 MB of text per second and core."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if config.pattern == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(_SPLITS[config.pattern]), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_chunks(texts), trainer, length=len(texts))
    return _finished(tokenizer, special_tokens=special_tokens, trainer="huggingface")


def _finished(tokenizer: Any, *, special_tokens: tuple[str, ...], trainer: Literal["gigatoken", "huggingface"]) -> TrainedTokenizer:
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    content = tokenizer.to_str(pretty=True).encode()
    return TrainedTokenizer(tokenizer_json=content, trainer=trainer, vocab_size=tokenizer.get_vocab_size(with_added_tokens=True))


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), _CHUNK_DOCUMENTS):
        yield texts[start : start + _CHUNK_DOCUMENTS]


def _byte_letters() -> list[str]:
    """Returns the printable letter that stands for each byte in a byte-level `tokenizer.json`.

    Printable Latin-1 stands for itself; the other bytes, in order, for the letters from U+0100 on (GPT-2's table).
    """
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, shifted = [], 0x100
    for byte in range(NUM_BYTES):
        letters.append(chr(byte if byte in itself else shifted))
        shifted += byte not in itself
    return letters
