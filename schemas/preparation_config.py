"""The recipe's section `corpus.preparation`: what is done to accepted documents before a tokenizer sees them. All of it is off by default.

The order is fixed, whatever the order in the file: normalization, language, quality, pii, decontamination, duplicates.
"""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from schemas.frozen import Frozen, added_later, thaw
from schemas.split import Split

Share = Annotated[float, Field(ge=0.0, le=1.0)]
LanguageCode = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]


class Normalization(StrEnum):
    """The Unicode normalization form of texts."""

    NONE = "none"
    NFC = "nfc"
    NFKC = "nfkc"


_LANGUAGES = """
    aa ab af ak am ar as ay az ba be bg bh bi bn bo br bs ca ceb chr co crs cs cy da de dv dz el en eo es et eu fa fi fj fo fr fy ga gd gl
    gn gu gv ha haw he hi hmn hr ht hu hy ia id ie ig ik is it iu ja jv ka kha kk kl km kn ko ks ku ky la lb lg lif ln lo lt lv mfe mg mi
    mk ml mn mr ms mt my na nb ne nl nn no nr nso ny oc om or pa pl ps pt qu rm rn ro ru rw sa sco sd sg si sk sl sm sn so sq sr ss st su
    sv sw syr ta te tg th ti tk tl tlh tn to tr ts tt ug uk ur uz ve vi vo war wo xh yi yo za zh zu zzp
"""
LANGUAGES = frozenset(_LANGUAGES.split())
"""The languages that can be recognised (by CLD2): ISO 639-1 codes where there is one, else ISO 639-3."""


class LanguageConfig(Frozen):
    """Which languages stay."""

    keep: tuple[LanguageCode, ...] = ()
    """ISO 639-1 codes of the languages that stay, for example `[en, zh]`. Empty: language is not looked at."""
    min_score: Share = 0.65
    """Least share of a document's recognised text that must be in these languages, taken together. (FineWeb's number, there a certainty.)"""

    @field_validator("keep")
    @classmethod
    def _can_be_recognised(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(keep) - LANGUAGES)
        if unknown:
            raise ValueError(f"no language that can be recognised: {', '.join(unknown)}; write codes as `en`, `de`, `zh`")
        return keep


class GopherLimits(Frozen):
    """Gopher's quality rules (arXiv 2112.11446, appendix A.1.1). What a word is, and what holds in scripts without spaces: docs/pipeline.md."""

    min_words: int = Field(default=50, ge=0)
    """Fewest words of a document."""
    max_words: int = Field(default=100_000, ge=1)
    """Most words of a document."""
    min_mean_word_length: float = Field(default=3.0, ge=0.0)
    """Least mean length of a word, in characters. Not judged where most words are CJK characters."""
    max_mean_word_length: float = Field(default=10.0, gt=0.0)
    """Most mean length of a word, in characters."""
    max_symbol_share: float = Field(default=0.1, ge=0.0)
    """Most hash signs, and most ellipses, per word."""
    max_bullet_lines: Share = 0.9
    """Most lines that begin with a bullet point, as a share."""
    max_ellipsis_lines: Share = 0.3
    """Most lines that end in an ellipsis, as a share."""
    min_alphabetic_words: Share = 0.8
    """Least words with at least one letter, as a share."""
    min_stop_words: int = Field(default=2, ge=0)
    """Fewest different words of `stop_words` in a document. Not judged where most words are CJK characters."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """The words of which prose holds some; lower case."""

    @model_validator(mode="after")
    def _some_document_is_allowed(self) -> Self:
        contradictions = []
        if self.min_words > self.max_words:
            contradictions.append(f"min_words ({self.min_words}) is above max_words ({self.max_words}), so no document could be accepted")
        if self.min_mean_word_length > self.max_mean_word_length:  # not judged where most words are CJK characters
            contradictions.append(
                f"min_mean_word_length ({self.min_mean_word_length:g}) is above max_mean_word_length ({self.max_mean_word_length:g}), "
                "so no document with spaces between its words could be accepted"
            )
        if contradictions:
            raise ValueError("\n".join(contradictions))
        return self


class RepetitionLimits(Frozen):
    """Gopher's rules against repetition (arXiv 2112.11446, table A1). Each is a share of the document's lines, paragraphs or characters."""

    max_duplicate_lines: Share = 0.3
    """Most lines that are copies of an earlier one."""
    max_duplicate_paragraphs: Share = 0.3
    """Most paragraphs that are copies of an earlier one."""
    max_duplicate_line_chars: Share = 0.2
    """Most characters in lines that are copies."""
    max_duplicate_paragraph_chars: Share = 0.2
    """Most characters in paragraphs that are copies."""
    max_top_ngram_chars: tuple[Share, Share, Share] = (0.20, 0.18, 0.16)
    """Most characters in the most frequent 2-gram, 3-gram and 4-gram of words."""
    max_duplicate_ngram_chars: tuple[Share, Share, Share, Share, Share, Share] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Most characters in word 5-grams … 10-grams that occur more than once."""


class C4Limits(Frozen):
    """C4's rules (arXiv 1910.10683, section 2.2). Lines that break one are cut out; what is left must be long enough.

    The two smallest numbers are those of the paper as JMLR printed it, of datatrove and so of FineWeb. The program that made C4, and the paper's
    last version, have 5 words to a line and 3 sentences.
    """

    terminal_punctuation: bool = True
    """Cut out lines that do not end in a terminal punctuation mark."""
    min_words_per_line: int = Field(default=3, ge=0)
    """Cut out lines with fewer words. The program that made C4: 5."""
    min_sentences: int = Field(default=5, ge=0)
    """Refuse documents that are left with fewer sentences. The program that made C4: 3."""
    max_word_chars: int | None = Field(default=1000, ge=1)
    """Cut out lines with a longer word (as the program did that made C4). `null`: none."""
    drop_citations: bool = True
    """Take out marks of citations: `[1]`, `[edit]`, `[citation needed]` (as that program did)."""
    drop_policy_lines: bool = True
    """Cut out lines about cookies, privacy policies and terms of use (as that program did)."""
    drop_javascript: bool = True
    """Cut out lines that speak of JavaScript."""
    drop_lorem_ipsum: bool = True
    """Refuse documents with `lorem ipsum`."""
    drop_curly_brackets: bool = True
    """Refuse documents that keep a line with `{`. Turn it off for code."""


class FineWebLimits(Frozen):
    """FineWeb's own rules (arXiv 2406.17557, section 3.6)."""

    min_punctuated_lines: Share = 0.12
    """Least lines that end in a punctuation mark, as a share."""
    max_duplicate_line_chars: Share = 0.1
    """Most characters in lines that are copies of an earlier one, as a share. The paper and FineWeb 2: 0.1; the program that made FineWeb: 0.01."""
    max_short_lines: Share = 0.67
    """Most lines of at most `short_line_chars`, as a share."""
    short_line_chars: int = Field(default=30, ge=1)
    """Characters of a line that counts as short."""
    max_newlines_per_word: float = Field(default=0.3, ge=0.0)
    """Most line breaks per word: more of them make a list (the program that made FineWeb; not in the paper)."""


class QualityConfig(Frozen):
    """Published heuristics for text from the web. Each family is turned on by itself; its limits can be changed one by one."""

    gopher: bool = False
    """Gopher's quality rules, with `gopher_limits`."""
    gopher_repetition: bool = False
    """Gopher's rules against repetition, with `gopher_repetition_limits`."""
    c4: bool = False
    """C4's rules, with `c4_limits`. They cut lines out of documents."""
    fineweb: bool = False
    """FineWeb's rules, with `fineweb_limits`."""
    gopher_limits: GopherLimits = GopherLimits()
    """Limits of `gopher`."""
    gopher_repetition_limits: RepetitionLimits = RepetitionLimits()
    """Limits of `gopher_repetition`."""
    c4_limits: C4Limits = C4Limits()
    """Limits of `c4`."""
    fineweb_limits: FineWebLimits = FineWebLimits()
    """Limits of `fineweb`."""

    @property
    def families(self) -> tuple[str, ...]:
        """The families that are on, in the order in which they are applied."""
        return tuple(name for name in ("gopher", "gopher_repetition", "c4", "fineweb") if getattr(self, name))


class PiiKind(StrEnum):
    """What of people can be masked."""

    EMAIL = "email"
    IP = "ip"
    PHONE = "phone"
    CREDIT_CARD = "credit-card"
    IBAN = "iban"
    SECRET = "secret"  # noqa: S105  # not a password


class PiiConfig(Frozen):
    """Masking of personal data."""

    mask: tuple[PiiKind, ...] = ()
    """What is replaced by a placeholder of its kind, for example `[email, ip]`. Empty: nothing."""


class DecontaminationConfig(Frozen):
    """Removal of training documents that share text with what the model will be judged by."""

    ngram: int | None = Field(default=None, ge=5, le=50)
    """Words in a row that are taken as the same text, for example 13 (arXiv 2005.14165, appendix C). `null`: off."""
    max_shared: int = Field(default=0, ge=0)
    """Most n-grams that a training document may share; with more it is refused."""
    min_shared_share: Share = 0.0
    """Least share of a document's n-grams that must be shared, besides, for it to be refused."""
    max_texts: int | None = Field(default=10, ge=1)
    """n-grams in more of the texts to compare with are common text (licences, headers) and ignored; compare GPT-3's limit of 10. `null`: none is."""
    test_split: bool = True
    """Compare with the corpus' own test split."""
    validation_split: bool = added_later(False)
    """Compare with the corpus' own validation split as well, so that the loss that is watched while training is of text that was not learned."""
    prompts: bool = added_later(False)
    """Compare with `evaluation.prompts` as well; only prompts of at least `ngram` words can be found."""
    files: tuple[str, ...] = ()
    """Further texts to compare with: text files (one text), or `.jsonl` files (every string in them). Relative paths as for sources."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """The held-out splits to compare with, in order."""
        wanted: tuple[tuple[Split, bool], ...] = (("test", self.test_split), ("validation", self.validation_split))
        return tuple(split for split, is_wanted in wanted if is_wanted)

    @property
    def compares_prompts(self) -> bool:
        """Whether the step is declared and compares with `evaluation.prompts`, which then are a part of what the corpus is."""
        return self.ngram is not None and self.prompts


class DuplicatesConfig(Frozen):
    """Duplicates over the whole corpus. Of each set one document stays: a held-out one before one to train on, then the smallest `doc_id`."""

    exact: bool = False
    """Refuse documents whose text equals another's after the steps before."""
    near: bool = False
    """Refuse documents that are nearly the same as another (MinHash over word shingles); includes `exact`."""
    threshold: float = Field(default=0.8, gt=0.0, lt=1.0)
    """Estimated Jaccard similarity of the shingles from which two documents are nearly the same."""
    permutations: int = Field(default=128, ge=16, le=1024)
    """Hash functions of a signature. More of them estimate more exactly: the standard error is about sqrt(s (1 - s) / permutations)."""
    shingle: int = Field(default=5, ge=1, le=50)
    """Words in a row that make a shingle; each CJK character is a word."""


class PreparationConfig(Frozen):
    """What is done to accepted documents, in this order. Nothing by default; then there is no stage `prepare`."""

    normalization: Normalization = Normalization.NONE
    """Unicode form of texts: `nfc` composes, `nfkc` also replaces compatibility characters (full-width letters, ligatures)."""
    language: LanguageConfig = LanguageConfig()
    """Which languages stay."""
    quality: QualityConfig = QualityConfig()
    """Published quality rules."""
    pii: PiiConfig = PiiConfig()
    """Masking of personal data."""
    decontamination: DecontaminationConfig = DecontaminationConfig()
    """Removal of training text that is also in the evaluation."""
    duplicates: DuplicatesConfig = DuplicatesConfig()
    """Duplicates over the whole corpus."""

    @model_validator(mode="after")
    def _compares_with_something(self) -> Self:
        against = self.decontamination
        if against.ngram is not None and not (against.splits or against.prompts or against.files):
            raise ValueError(
                "decontamination.ngram compares with nothing: test_split, validation_split and prompts of decontamination are off, and "
                "decontamination.files is empty; nearest: test_split: true"
            )
        return self

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that are declared, in the order in which they are applied."""
        declared = {
            "normalization": self.normalization is not Normalization.NONE,
            "language": bool(self.language.keep),
            "quality": bool(self.quality.families),
            "pii": bool(self.pii.mask),
            "decontamination": self.decontamination.ngram is not None,
            "duplicates": self.duplicates.exact or self.duplicates.near,
        }
        return tuple(name for name, wanted in declared.items() if wanted)

    def identity(self) -> dict[str, Any]:
        """Returns what makes up the artifact, as plain data: the declared steps alone, without limits of what is off and without paths."""
        dumped = thaw(self.model_dump(mode="json"))
        sections = {name: dumped[name] for name in self.steps}
        if (quality := sections.get("quality")) is not None:
            sections["quality"] = {family: quality[f"{family}_limits"] for family in self.quality.families}
        if (against := sections.get("decontamination")) is not None:
            against["files"] = len(self.decontamination.files)  # their content is an input
        if (duplicates := sections.get("duplicates")) is not None and not self.duplicates.near:
            sections["duplicates"] = {"exact": duplicates["exact"]}
        return sections
