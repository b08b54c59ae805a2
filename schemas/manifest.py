"""Manifests: what a corpus and a set of token shards consist of."""

from collections.abc import Iterable
from typing import Literal, Self

from schemas.artifact import FileEntry
from schemas.canonical import root_hash
from schemas.frozen import Frozen, added_later
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


def without_places(inputs: Iterable[InputFile]) -> tuple[InputFile, ...]:
    """Returns raw files but for where they lie: equal of two lists that name the same bytes."""
    return tuple(file.model_copy(update={"path": ""}) for file in inputs)


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

    @property
    def raw_bytes(self) -> int:
        """Stored bytes of all inputs."""
        return sum(file.size for group in self.groups for file in group.inputs)

    def without_places(self) -> Self:
        """Returns what it says but for where raw files lie."""
        return self.model_copy(update={"groups": tuple(group.model_copy(update={"inputs": without_places(group.inputs)}) for group in self.groups)})


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


EncodingEvidence = Literal["declared", "byte order mark", "ASCII", "strict UTF-8", "UTF-8 but for some damage", "detected", "not told"]
"""How the encoding of a raw file was found. `detected`: by how likely its text is. `not told`: it was not, or it contradicts the recipe."""


class FileEncoding(Frozen):
    """What a raw file was read as, where the recipe does not leave `corpus.encoding` at its default."""

    source: str
    """Name of the source it belongs to."""
    relative_path: str
    """Path within the source."""
    encoding: str
    """A value of `corpus.encoding`, never `auto`, or `utf-32`; empty when it could not be told."""
    evidence: EncodingEvidence
    """How that was found."""


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
    encodings: tuple[FileEncoding, ...] = added_later(())
    """What each raw file was read as, in the order of `inputs`; none where that is UTF-8 by default, and none of Parquet files."""

    def without_places(self) -> Self:
        """Returns what it says but for where raw files lie."""
        return self.model_copy(update={"inputs": without_places(self.inputs)})

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
    source: str = added_later("")
    """The one source that all of its documents are of, where shards are cut by source; empty: of any."""
    lengths_offset: int = added_later(0)
    """Byte where the rows' lengths start, int32 each, where they are recorded (`fixed` layout; 0 otherwise)."""
    starts_offset: int = added_later(0)
    """Byte where the rows' marks of document starts begin, ceil(sequence_length / 8) bytes each, where they are recorded (as above)."""
    learned_offset: int = added_later(0)
    """Byte where the rows' marks of tokens that are learned begin, likewise."""


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
    packing: Literal["concatenate", "best_fit"] = added_later("concatenate")
    """How documents were laid into rows. `best_fit`: any row may end in padding, and the shards' column `tokens` says where."""
    by_source: bool = added_later(False)
    """Whether a shard holds documents of one source alone (`Shard.source`)."""
    boundaries: bool = added_later(False)
    """Whether the shards' column `starts` says where documents start."""
    loss_masks: bool = added_later(False)
    """Whether the shards' column `learned` says which tokens training learns. Otherwise all, but for padding."""
    shards: tuple[Shard, ...]
    """By (split, group, position); by (split, place of the source in the recipe, group, position) where they are cut by source."""

    def of_split(self, split: Split) -> tuple[Shard, ...]:
        """Returns the shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def num_sequences(self, split: Split) -> int:
        """Returns the rows of one split."""
        return sum(shard.rows for shard in self.of_split(split))

    def sequences_by_source(self, split: Split) -> dict[str, int]:
        """Returns the rows of one split by source, "" for shards that are not cut by source."""
        shards = self.of_split(split)
        return {source: sum(shard.rows for shard in shards if shard.source == source) for source in dict.fromkeys(shard.source for shard in shards)}

    def num_tokens(self, split: Split) -> int:
        """Returns the tokens of one split, without padding."""
        return sum(shard.tokens for shard in self.of_split(split))
