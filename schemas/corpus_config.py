"""The recipe's `corpus` section: the raw text, how it is read, what it must satisfy, and how it is split."""

import codecs
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from schemas.frozen import Frozen, ReadOnly, added_later
from schemas.preparation_config import PreparationConfig

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$")]

EncodingName = Literal[
    "auto",
    "utf-8",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "gb18030",
    "big5",
    "big5hkscs",
    "cp950",
    "shift_jis",
    "cp932",
    "euc-jp",
    "euc-kr",
    "cp949",
    "latin-1",
    "cp1250",
    "cp1251",
    "cp1252",
    "cp1253",
    "cp1254",
    "cp1255",
    "cp1256",
    "koi8-r",
]
"""How raw text is encoded: names of Python's codecs. `gb18030` reads GBK and GB 2312, `cp949` EUC-KR, and `cp932` Shift-JIS as Windows writes it."""

_READ_BY: Mapping[str, EncodingName] = {
    "gbk": "gb18030",
    "gb2312": "gb18030",
    "ascii": "utf-8",
    "utf-8-sig": "utf-8",
    "utf-32": "auto",
    "utf-32-le": "auto",
    "utf-32-be": "auto",
}
"""Encodings whose text another value reads, by the names of Python's codecs. A byte order mark is left out anyway."""


def encoding_for(name: str) -> str | None:
    """Returns the value of `EncodingName` that reads what Python knows by `name` (`windows-1252`, `gbk`); empty when none does, None when it does
    not know it.
    """
    try:
        codec = codecs.lookup(name).name
        return _READ_BY.get(codec) or next((value for value in get_args(EncodingName)[1:] if codecs.lookup(value).name == codec), "")
    except (LookupError, ValueError, TypeError):  # no such name, no name at all, no text
        return None


class SourceConfig(Frozen):
    """One input: a file, a glob, or a folder, here or behind a URL. A plain string in a recipe is short for `{path: …}`."""

    path: str = Field(min_length=1)
    """File, glob or folder; relative paths start at the recipe's project folder. Or a URL of one (`s3://bucket/raw/`, `https://host/file.jsonl.zst`),
    which only the machine that runs `headrace` reads. `${python:stdlib}` is the running Python's standard library."""
    name: Name | None = None
    """Name under which the documents are counted and evaluated. Default: `source-N`, N being the position in the list."""
    format: Literal["auto", "jsonl", "parquet", "csv", "text"] = "auto"
    """How files are read. `auto` goes by the ending; `text` makes one document of a whole file (prose, code)."""
    encoding: EncodingName | None = added_later(None)
    """How this source's files are encoded; `null`: as `corpus.encoding` says. Parquet is UTF-8 always."""
    text_column: str = "text"
    """Column or JSON key that holds the document's text (jsonl, parquet, csv)."""
    kind: Literal["text", "chat"] = added_later("text")
    """`chat`: the text column holds conversations, lists of messages with `role` and `content`, or their JSON. The tokenizer's chat template makes
    text of them, and training learns what assistants say."""
    include: tuple[str, ...] = ("*",)
    """For folders: patterns of relative paths to read. `*` also crosses folders."""
    exclude: tuple[str, ...] = ()
    """For folders: patterns of relative paths to leave out; `*` also crosses folders."""

    @model_validator(mode="after")
    def _conversations_have_a_column(self) -> Self:
        if self.kind == "chat" and self.format == "text":
            raise ValueError("format (text) makes one document of a whole file, and kind: chat needs a column; nearest: jsonl")
        return self


class RulesConfig(Frozen):
    """What a document must satisfy; what does not is quarantined with file, row, reason and excerpt."""

    OF_THE_WHOLE: ClassVar[frozenset[str]] = frozenset({"max_quarantined_share", "max_record_drift", "min_documents"})
    """The rules that the whole corpus must satisfy: the verdict depends on them, and no document does."""

    required_columns: Annotated[Mapping[str, Literal["string", "integer", "number", "boolean"]], *ReadOnly] = Field(default_factory=dict)
    """Columns that each record must have besides the text, with their types (jsonl, parquet, csv)."""
    min_chars: int = Field(default=1, ge=0)
    """Fewest characters of a document, after stripping white space."""
    max_chars: int = Field(default=10_000_000, ge=1)
    """Most characters of a document."""
    drop_duplicates: bool = True
    """Quarantine every copy but the first of documents with equal text."""
    min_printable_share: Fraction = 0.9
    """Least share of characters that are printable or white space; catches binary data and broken encodings."""
    max_quarantined_share: Fraction = 0.1
    """Verdict *fail* when more than this share of the records is quarantined. Duplicates do not count: they are normal."""
    max_record_drift: float | None = Field(default=None, ge=0.0)
    """Verdict *fail* when the number of records changed by more than this share against the previous accepted corpus. `null`: not judged."""
    min_documents: int = Field(default=1, ge=1)
    """Verdict *fail* with fewer accepted documents than this."""

    @model_validator(mode="after")
    def _some_length_is_allowed(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) is above max_chars ({self.max_chars}), so no document could be accepted")
        return self


class SplitConfig(Frozen):
    """How documents are split, by hash of their content: stable when documents are added."""

    validation: Fraction = 0.01
    """Share held out for the validation loss during training."""
    test: Fraction = 0.01
    """Share held out for the `evaluate` stage. May be 0 where text is prepared and no model is trained."""

    @model_validator(mode="after")
    def _leaves_training_data(self) -> Self:
        if self.validation + self.test >= 1.0:
            raise ValueError(
                f"validation ({self.validation}) + test ({self.test}) = {self.validation + self.test} leaves nothing to train on; must be below 1"
            )
        return self


class CorpusConfig(Frozen):
    """The raw text, the rules it must satisfy, and how it is split."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """The inputs, in order."""
    rules: RulesConfig = RulesConfig()
    """What a document must satisfy."""
    splits: SplitConfig = SplitConfig()
    """Shares of the held-out splits."""
    encoding: EncodingName = added_later("utf-8")
    """How raw text is encoded (jsonl, csv, text; also compressed). `auto` finds it out per file, and quarantines a file where that is in doubt."""
    preparation: PreparationConfig = PreparationConfig()
    """What is done to accepted documents before a tokenizer sees them. Nothing by default; what `validate` makes does not depend on it."""
    group_bytes: int = Field(default=64_000_000, ge=1_000)
    """Inputs are gathered into groups of about this many raw bytes: the unit of work and of reuse."""

    @field_validator("sources", mode="before")
    @classmethod
    def _strings_are_paths(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple({"path": item} if isinstance(item, str) else item for item in value)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = self.source_names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources must have unique names, found twice: {', '.join(twice)}")
        return self

    @property
    def source_names(self) -> tuple[str, ...]:
        """The name of each source, in order: its own, or `source-N`."""
        return tuple(source.name or f"source-{index}" for index, source in enumerate(self.sources))

    @property
    def conversations(self) -> tuple[str, ...]:
        """The names of the sources that hold conversations, in order."""
        return tuple(name for name, source in zip(self.source_names, self.sources, strict=True) if source.kind == "chat")
