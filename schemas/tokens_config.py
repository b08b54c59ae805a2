"""The recipe's sections `tokenizer` and `tokenization`: how text becomes ids, and ids become sequences."""

from typing import Literal

from pydantic import Field

from schemas.frozen import Frozen, added_later


class TokenizerConfig(Frozen):
    """A byte-level BPE trained on the corpus, or an existing tokenizer."""

    path: str | None = None
    """An existing `tokenizer.json` or a Hugging Face folder. `null`: train one."""
    vocab_size: int = Field(default=32_768, ge=257 + 1)
    """Ids of a trained tokenizer, special tokens included: 256 bytes + merges + special tokens. Ignored with `path`."""
    pattern: Literal["gpt2", "llama3", "qwen2"] = "gpt2"
    """How text is pre-split before merging. Ignored with `path`."""
    min_frequency: int = Field(default=2, ge=1)
    """A pair must occur this often to be merged."""
    training_bytes: int = Field(default=256_000_000, ge=1)
    """A tokenizer is trained on about this many bytes of the training split, documents chosen by the hash of their id. Ignored with `path`."""
    end_of_text: str = Field(default="<|endoftext|>", min_length=1)
    """The token between documents. An existing tokenizer must have it."""
    special_tokens: tuple[str, ...] = ()
    """Further special tokens of a trained tokenizer."""
    chat_template: str | None = added_later(None)
    """Jinja template that makes text of conversations, as transformers' `apply_chat_template` takes it; exported with the model. `null`: that of
    an existing tokenizer, in its `tokenizer_config.json` or a `chat_template.jinja` beside it."""
    min_bytes_per_token: float = Field(default=1.5, gt=0.0)
    """Gate: the tokenizer must compress held-out text to at least this many bytes per token."""
    max_tokens_per_word: float = Field(default=6.0, gt=0.0)
    """Gate on fertility: at most this many tokens per word of held-out text.

    A word is a run of letters and digits, or of other signs; in scripts without spaces, a character.
    """


class TokenizationConfig(Frozen):
    """How documents become packed sequences in shards."""

    sequence_length: int = Field(default=1024, ge=8)
    """Tokens of one training sequence."""
    sequences_per_shard: int = Field(default=8192, ge=1)
    """Sequences of one shard (a Parquet file); the last one of a group may hold fewer."""
    engine: Literal["auto", "gigatoken", "huggingface"] = "auto"
    """`auto`: gigatoken where it knows the tokenizer, Hugging Face `tokenizers` where it refuses. Both give the same ids."""
    layout: Literal["fixed", "list"] = "fixed"
    """`fixed`: one fixed-size binary value per sequence (fast). `list`: `list<uint16|uint32>`, for other readers."""
    shadow_check_documents: int = Field(default=200, ge=0)
    """Documents per group, spread evenly, that Hugging Face `tokenizers` encodes as well: ids must be equal. At most a 2048th of the text, but
    256 KiB of every corpus."""
    packing: Literal["concatenate", "best_fit"] = added_later("concatenate")
    """`concatenate`: documents follow each other and are cut where a sequence ends. `best_fit`: only a document longer than a sequence is cut; short
    ones are put together so that they fill sequences (Ding et al. 2024), which end in a little padding."""
    by_source: bool = added_later(False)
    """Whether sequences and shards hold documents of one source only, so that training can weigh sources. Each (group, source) pads a sequence."""
    boundaries: bool = added_later(False)
    """Whether shards record where documents start, one bit per token: `training.document_attention: masked` needs it."""
