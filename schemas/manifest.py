"""Manifests: what a corpus and a set of token shards consist of."""

from collections.abc import Iterable
from typing import Literal

from schemas.artifact import FileEntry
from schemas.canonical import root_hash
from schemas.frozen import Frozen
from schemas.split import SPLITS as SPLITS
from schemas.split import Split as Split


class InputFile(Frozen):
    """One raw input file."""

    source: str
    """Name of the source it belongs to."""
    path: str
    """Absolute path or URL."""
    relative_path: str
    """Path within the source: what decides the group and appears in `source` columns."""
    size: int
    """Bytes as stored (compressed)."""
    xxh3: str
    """xxh3-128 of the stored bytes, hex."""


def raw_hash(inputs: Iterable[InputFile]) -> str:
    """Returns one hash over all raw files, wherever they lie: what identifies a corpus before it is read."""
    return root_hash((f"{file.source}/{file.relative_path}", file.size, file.xxh3) for file in inputs)


class CorpusGroup(Frozen):
    """Inputs that are validated together; the unit of work and of reuse."""

    index: int
    """0-based."""
    inputs: tuple[InputFile, ...]
    """In order of (source, relative path)."""


class CorpusPlan(Frozen):
    """The frozen plan of `validate` (`plan.json`): which inputs make which group. Does not depend on the number of workers."""

    schema_version: int = 1
    """Version of this type."""
    groups: tuple[CorpusGroup, ...]
    """All groups."""


class AcceptedFile(Frozen):
    """One Parquet file of accepted documents: columns `doc_id, source, path, row, text, extra` (the other columns as a JSON object, or null)."""

    group: int
    """The group it came from."""
    split: Split
    """The split."""
    file: FileEntry
    """The file."""
    documents: int
    """Rows."""
    text_bytes: int
    """UTF-8 bytes of all texts."""


class CorpusManifest(Frozen):
    """`manifest.json` of a `validate` artifact. Accepted + quarantined = read, always."""

    schema_version: int = 1
    """Version of this type."""
    files: tuple[AcceptedFile, ...]
    """Accepted documents by (group, split), in that order; no entry for an empty split of a group."""
    inputs: tuple[InputFile, ...]
    """Every raw file that was read, with the hash of the bytes that were parsed."""
    read: int
    """Records read."""
    accepted: int
    """Documents accepted."""
    quarantined: int
    """Records quarantined."""
    reasons: dict[str, int]
    """Quarantined records by reason."""

    def of_split(self, split: Split) -> tuple[AcceptedFile, ...]:
        """Returns the files of one split, by group."""
        return tuple(file for file in self.files if file.split == split)


class Shard(Frozen):
    """One Parquet file of packed sequences."""

    group: int
    """The corpus group it came from; packing never crosses a group."""
    split: Split
    """The split."""
    file: FileEntry
    """The file."""
    rows: int
    """Sequences."""
    tokens: int
    """Tokens without padding, end-of-text tokens included."""
    last_row_tokens: int
    """Tokens of the last row; the rest of it is padding."""
    payload_offset: int
    """Byte where the contiguous payload starts (`fixed` layout; 0 otherwise): rows × sequence_length × itemsize bytes follow."""
    text_bytes: int
    """UTF-8 bytes of the documents that *begin* in this shard."""
    source_xxh3: str = ""
    """Hash of the accepted file that it was cut from: an equal file gives equal shards."""


class ShardManifest(Frozen):
    """`manifest.json` of a `tokenize` artifact."""

    schema_version: int = 1
    """Version of this type."""
    layout: Literal["fixed", "list"]
    """How a row is stored."""
    dtype: Literal["uint16", "uint32"]
    """Little-endian integer type of an id."""
    sequence_length: int
    """Tokens per row."""
    vocab_size: int
    """Ids are below this."""
    end_of_text_id: int
    """The token between documents, also the padding."""
    tokenizer_hash: str
    """Content hash of the tokenizer artifact."""
    engine: Literal["gigatoken", "huggingface", "imported"]
    """What encoded the text; `imported`: somebody else, the shards were made of ids."""
    shards: tuple[Shard, ...]
    """By (split, group, position)."""

    def of_split(self, split: Split) -> tuple[Shard, ...]:
        """Returns the shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def num_sequences(self, split: Split) -> int:
        """Returns the rows of one split."""
        return sum(shard.rows for shard in self.of_split(split))

    def num_tokens(self, split: Split) -> int:
        """Returns the tokens of one split, without padding."""
        return sum(shard.tokens for shard in self.of_split(split))
