"""Text to ids: gigatoken where it knows the tokenizer, Hugging Face `tokenizers` where it refuses. Both give the same ids.

A document's text is ordinary text, whatever it says: the special tokens of the vocabulary are never recognised in it, so a document that
contains the letters of the end-of-text token cannot pretend to end. Nothing is added either: no begin-of-text token, no padding, no truncation.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from schemas.errors import ConfigError, InputError, Problem

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

EngineName = Literal["gigatoken", "huggingface"]

_PROBES = (
    "The mill-wheel's race: water flows, and grinds 1234567890 grains of wheat; isn't that NICE?",
    "  leading,   inner  and trailing white space \t\n\n   \r\n \u00a0\u3000 x ",
    "def run(self, *args):\n    return [x**2 for x in args if x != 0]  # <|endoftext|> </s> <s> [SEP]\n",
    "水车是利用水流的动力来工作的机械。スイシャは水の力で回る。 물레방아 Вода вращает колесо",
    "e\u0301 \u00e9 \ufb01 \u0130 \u1e9e 👩\u200d🚀🏽 \u202e\u0000\u0001\ufeff ½ ² Ⅷ ٣",
)
"""Short texts on which engines that take a tokenizer differently part: white space, numbers, contractions, scripts, accents, control letters."""
_MOST_ADDED = 256
"""Added tokens that are probed."""


@dataclass(frozen=True)
class Encoded:
    """Ids of some documents, one after the other."""

    ids: npt.NDArray[np.uint32]
    """All ids [T]."""
    offsets: npt.NDArray[np.int64]
    """Document i has the ids `offsets[i]:offsets[i + 1]`; one entry more than documents."""
    learned: npt.NDArray[np.bool_] | None = None
    """Which of the ids [T] training learns; None: all."""

    def of(self, index: int) -> list[int]:
        """Returns the ids of one document."""
        ids: list[int] = self.ids[self.offsets[index] : self.offsets[index + 1]].tolist()
        return ids


class Engine(Protocol):
    """Encodes batches of documents. Output never depends on the number of threads."""

    name: EngineName

    def encode(self, texts: list[str]) -> Encoded:
        """Returns the ids of `texts`, in order."""

    def encode_column(self, texts: "pa.Array") -> Encoded:
        """Returns the ids of an Arrow column of strings without nulls, in order."""


@dataclass(frozen=True)
class EngineChoice:
    """Which engine encodes, decided once per artifact."""

    name: EngineName
    reason: str
    """Why, for people."""


@dataclass(frozen=True)
class TokenizerFacts:
    """What the rest of the pipeline needs to know of a tokenizer."""

    vocab_size: int
    """Ids are below this: the largest id plus one."""
    end_of_text_id: int
    """Id of the token between documents."""


class HuggingFaceEngine:
    """Hugging Face `tokenizers`: every kind of tokenizer, about 5 MB of text per second and core."""

    name: EngineName = "huggingface"

    def __init__(self, tokenizer_json: bytes) -> None:
        """Args: tokenizer_json: content of a `tokenizer.json`. Raises InputError when it is none."""
        self.tokenizer = load_tokenizer(tokenizer_json)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # encode them as the text they are

    def encode(self, texts: list[str]) -> Encoded:
        """See `Engine.encode`."""
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        pieces = [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]
        offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
        np.cumsum([piece.size for piece in pieces], out=offsets[1:])
        return Encoded(ids=np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint32), offsets=offsets)

    def encode_column(self, texts: "pa.Array") -> Encoded:
        """See `Engine.encode_column`."""
        return self.encode(texts.to_pylist())

    def decode(self, ids: list[int]) -> str:
        """Returns the text of `ids`, special tokens included."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text


class GigatokenEngine:
    """gigatoken: byte-level and SentencePiece-style BPE with split patterns that it knows, some 100 MB of text per second and core."""

    name: EngineName = "gigatoken"

    def __init__(self, tokenizer_json: bytes) -> None:
        """Args: tokenizer_json: content of a `tokenizer.json`. Raises RuntimeError or ValueError when gigatoken does not know its parts."""
        from gigatoken.gigatoken_rs import load_hf_json

        # gigatoken always recognises special tokens in text; a copy without them encodes everything as text
        description = orjson.loads(tokenizer_json)
        description["added_tokens"] = [token for token in description.get("added_tokens") or [] if not token.get("special")]
        self._backend = load_hf_json(orjson.dumps(description))

    def encode(self, texts: list[str]) -> Encoded:
        """See `Engine.encode`."""
        if not texts:
            return Encoded(ids=np.empty(0, dtype=np.uint32), offsets=np.zeros(1, dtype=np.int64))
        return _encoded(self._backend.encode_batch(texts, parallel=_has_threads()))

    def encode_column(self, texts: "pa.Array") -> Encoded:
        """See `Engine.encode_column`. The column's memory is lent to gigatoken: no text is copied or becomes a Python string."""
        import awkward as ak

        _, offsets, data = texts.buffers()
        if data is None or not len(texts):
            return self.encode(texts.to_pylist())
        ends = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)  # it refuses 32-bit offsets
        letters = ak.contents.NumpyArray(np.frombuffer(data, dtype=np.uint8), parameters={"__array__": "char"})
        strings = ak.contents.ListOffsetArray(ak.index.Index64(ends), letters, parameters={"__array__": "string"})
        return _encoded(self._backend.encode_batch(ak.Array(strings), parallel=_has_threads()))


def _encoded(array: Any) -> Encoded:
    """Returns what gigatoken answers, an awkward array of lists, without copying it."""
    layout = array.layout
    offsets = np.asarray(layout.offsets.data, dtype=np.int64)
    ids = np.asarray(layout.content.data, dtype=np.uint32)
    return Encoded(ids=ids[offsets[0] : offsets[-1]], offsets=offsets - offsets[0])


def _has_threads() -> bool:
    """Whether gigatoken's pool has more than one thread. To hand a batch to a pool of one, and take it back, is a copy of all ids."""
    return os.environ.get("RAYON_NUM_THREADS") != "1"


def limit_threads(num_threads: int) -> None:
    """Sets the threads of both engines' pools. Must come before their first use; the environment's own wish wins."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(num_threads))


def load_tokenizer(tokenizer_json: bytes, *, subject: str = "tokenizer.json") -> Any:
    """Returns the `tokenizers.Tokenizer`. Raises InputError, which calls it `subject`, when the bytes are not a `tokenizer.json`."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(tokenizer_json)
    except BaseException as error:  # the library raises bare Exception, and panics where it did not expect what it reads
        if not _is_of_library(error):
            raise
        mend = "make it with tokenizers' Tokenizer.save, or transformers' save_pretrained of a fast tokenizer"
        raise InputError(f"{subject} cannot be loaded", why=str(error), mend=mend) from error


def choose_engine(tokenizer_json: bytes, *, wanted: Literal["auto", "gigatoken", "huggingface"]) -> EngineChoice:
    """Decides which engine encodes.

    Raises:
        ConfigError: `gigatoken` is wanted but refuses this tokenizer.
    """
    if wanted == "huggingface":
        return EngineChoice("huggingface", "tokenization.engine asks for it")
    reason = _refusal(tokenizer_json)
    if reason is None:
        return EngineChoice("gigatoken", "gigatoken knows it" if wanted == "auto" else "tokenization.engine asks for it")
    if wanted == "gigatoken":
        message = f"gigatoken refuses this tokenizer: {reason}"
        raise ConfigError((Problem("tokenization.engine", "'gigatoken'", message, nearest="auto"),))
    logger.info("gigatoken refuses the tokenizer (%s); Hugging Face tokenizers encodes", reason)
    return EngineChoice("huggingface", f"gigatoken refuses it: {reason}")


def _refusal(tokenizer_json: bytes) -> str | None:
    """Returns why gigatoken cannot encode with this tokenizer, or None when it can.

    It ignores some parts that it does not know (a byte-level splitter without its pattern, for one), so it must also pass a probe.
    """
    reference = HuggingFaceEngine(tokenizer_json)
    probes = [*_PROBES, *_probes_of_added_tokens(reference)]
    try:
        found = GigatokenEngine(tokenizer_json).encode(probes)
    except BaseException as error:
        if not _is_of_library(error):
            raise
        return (str(error).splitlines() or [type(error).__name__])[0]
    expected = reference.encode(probes)
    for index, probe in enumerate(probes):
        if found.of(index) != expected.of(index):
            return f"it gives other ids than Hugging Face tokenizers for {probe!r}"
    return None


def _probes_of_added_tokens(reference: HuggingFaceEngine) -> list[str]:
    """Returns texts that hold the tokenizer's own added tokens in the places where their options (whole words, stripping) matter."""
    added = [token.content for _, token in sorted(reference.tokenizer.get_added_tokens_decoder().items()) if not token.special]
    return [f"a {token} b{token}c  {token}\n {token.upper()}{token}." for token in added[:_MOST_ADDED]]


def _is_of_library(error: BaseException) -> bool:
    """Whether a Rust library said that it cannot go on: an exception, or a panic, which Python sees as a BaseException of no public class."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def open_engine(name: EngineName, tokenizer_json: bytes) -> Engine:
    """Returns the engine of that name for this tokenizer."""
    return GigatokenEngine(tokenizer_json) if name == "gigatoken" else HuggingFaceEngine(tokenizer_json)


def facts_of(tokenizer_json: bytes, *, end_of_text: str, subject: str, key: str = "tokenizer.end_of_text") -> TokenizerFacts:
    """Returns vocabulary size and end-of-text id.

    Args:
        end_of_text: the token between documents; must be one of the tokenizer's special tokens.
        subject: what the error message calls the tokenizer.
        key: what sets `end_of_text`, for people.

    Raises:
        InputError: the tokenizer cannot be loaded, or has no such special token.
    """
    tokenizer = load_tokenizer(tokenizer_json, subject=subject)
    if getattr(tokenizer.model, "dropout", None):
        mend = "set model.dropout to null in its tokenizer.json"
        raise InputError(f"{subject} drops merges at random (model.dropout)", why="equal text must give equal ids", mend=mend)
    vocabulary: Mapping[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    special = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    if end_of_text not in special:
        known = ", ".join(sorted(special)[:12]) or "none"
        what = f"{subject} has no special token {end_of_text!r}"
        why = "documents are joined with it, and training stops at it; special tokens that it has: " + known
        raise InputError(what, why=why, mend=f"set {key} to one of them, or add the token to the tokenizer's added_tokens")
    return TokenizerFacts(vocab_size=max(vocabulary.values()) + 1, end_of_text_id=special[end_of_text])
