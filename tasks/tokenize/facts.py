"""What all shards of an artifact have in common: decided once by the control half, handed to every item, stated in every shard."""

from collections.abc import Mapping
from typing import Any, Literal

from schemas.frozen import Frozen, added_later, thaw


class ShardFacts(Frozen):
    """The frozen decisions of one `tokenize` artifact."""

    layout: Literal["fixed", "list"]
    """How a row is stored."""
    dtype: Literal["uint16", "uint32"]
    """Little-endian integer type of an id."""
    sequence_length: int
    """Tokens per row."""
    sequences_per_shard: int
    """Rows of a full shard."""
    vocab_size: int
    """Ids are below this."""
    end_of_text: str
    """The token between documents, also the padding."""
    end_of_text_id: int
    """Its id."""
    tokenizer_hash: str
    """Content hash of the tokenizer artifact."""
    writer: str
    """Library whose layout the Parquet files have, with its version: another one lays out other bytes."""
    engine: Literal["gigatoken", "huggingface"]
    """What encodes. Not stated in a shard: both give the same ids, so the same bytes."""
    packing: Literal["concatenate", "best_fit"] = added_later("concatenate")
    """How documents are laid into rows."""
    by_source: bool = added_later(False)
    """Whether a shard holds documents of one source alone."""
    boundaries: bool = added_later(False)
    """Whether shards record where documents start."""
    conversations: tuple[str, ...] = added_later(())
    """Sources whose documents are conversations. With any, shards record which tokens training learns."""

    def stated(self) -> dict[str, Any]:
        """Returns what a shard's metadata states of these."""
        return self.model_dump(mode="json", exclude={"engine"})

    def are_those_of(self, summary: Mapping[str, Any]) -> bool:
        """Whether an earlier artifact, whose record has this summary, was cut and encoded the same way."""
        return {name: thaw(summary[name]) for name in type(self).model_fields if name in summary and name != "engine"} == self.stated()
