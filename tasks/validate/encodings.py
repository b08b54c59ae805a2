"""Raw text in other encodings than UTF-8: which one a file has, and its lines or its whole as UTF-8. Nothing is ever replaced.

A declared encoding is taken at its word. `auto` goes by the byte order mark, else by strict UTF-8, else by charset-normalizer over the first lines
beyond ASCII; what is in doubt is no answer. Then lines are decoded strictly, and one that cannot be decoded costs its own record.
"""

import codecs
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from schemas.corpus_config import EncodingName
from schemas.manifest import EncodingEvidence
from tasks.validate.lines import BOM, RefusedLine, line_runs
from tasks.validate.problem import Problem, Reason
from tasks.validate.streams import DamagedStreamError

_CANDIDATES = (
    *("gb18030", "big5", "cp950", "big5hkscs", "cp932", "euc-jp", "cp949"),
    *("cp1251", "koi8-r", "cp1252", "cp1250", "cp1253", "cp1254", "cp1255", "cp1256"),
)
"""What `auto` chooses from. A short list: among all that Python knows, any text is something."""
_SAMPLE_BYTES = 1 << 16
_MOST_HELD_BYTES = 4 << 20
"""Text that waits for the decision, at most."""
_LEAST_EVIDENCE = 64
"""Bytes beyond ASCII below which nothing is concluded."""
_LEAST_MARGIN = 0.08
"""By how much the best candidate must be ahead of the next one that reads other text, in coherence minus chaos, each 0 to 1."""
_MOST_DAMAGE = 0.05
"""Share of the characters beyond ASCII that may be broken in text that is UTF-8 all the same."""
_WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
"""Encodings in which a line feed is more than its byte: they are decoded before lines are looked for."""
_MARKS = (
    (BOM, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the next one: no text in UTF-16 has U+0000 as its first character
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
)
_ASCII = bytes(range(0x80))
_REPLACEMENT = "\ufffd"


class UnknownEncodingError(Exception):
    """A file whose encoding cannot be told: part of reading, caught by the readers. `problem`: what was found, and what would help."""

    def __init__(self, detail: str, *, mend: str = "name it") -> None:
        super().__init__(detail)
        self.problem = Problem(Reason.UNKNOWN_ENCODING, f"{detail}; {mend}: corpus.encoding, or corpus.sources[].encoding")


class Detected(NamedTuple):
    """What a file was read as."""

    encoding: str
    """A value of `EncodingName`, never `auto`, or `utf-32`, which has a mark always; empty when it could not be told."""
    evidence: EncodingEvidence
    """How it was found."""


_NOT_TOLD = Detected("", "not told")


class Decoding:
    """The decoding of one file, which for `auto` is found out while it is read."""

    def __init__(self, declared: EncodingName) -> None:
        """Args: declared: by the recipe."""
        self.declared: EncodingName = declared
        self.found: Detected | None = None if declared == "auto" else Detected(declared, "declared")
        """What the file is read as; None as long as nothing but ASCII was seen."""
        self._is_at_start = True

    @property
    def outcome(self) -> Detected:
        """What the file was read as, once it was."""
        return self.found or Detected("utf-8", "ASCII")

    def line_runs(self, content: Iterator[bytes]) -> Iterator[bytes]:
        """Yields what `lines.line_runs` does, as UTF-8; a line that cannot be decoded is a `RefusedLine`.

        Raises:
            DamagedStreamError: see `lines.line_runs`.
            UnknownEncodingError: the file's encoding cannot be told; everything before was ASCII and was yielded.
        """
        first = next(content, b"")  # all of the file, or longer than any mark
        self._heed_mark(first)
        content = itertools.chain([first], content)
        if self.declared == "utf-8":
            yield from line_runs(content)
            return
        if self.found is not None and self.found.encoding in _WIDE:
            yield from line_runs(self._recoded(content, encoding=self.found.encoding))
            return
        for run in self._decided(line_runs(content)):
            yield from self._transcoded(run)

    def text(self, data: bytes) -> bytes | Problem:
        """Returns a whole file as UTF-8 without byte order mark, or what is wrong with it. Invalid UTF-8 is left for the caller to find."""
        try:
            self._heed_mark(data)
            if self.found is None and not data.isascii():
                self._tell(data if len(data) <= _MOST_HELD_BYTES else data[: data.rfind(b"\n", 0, _MOST_HELD_BYTES) + 1] or data)
        except UnknownEncodingError as unknown:
            return unknown.problem
        if self.found is None or self.found.encoding == "utf-8":
            return data.removeprefix(BOM)
        try:
            return self._unmarked(data.decode(self.found.encoding)).encode()
        except UnicodeError as error:
            return _problem_of(error, encoding=self.found.encoding)

    def _unmarked(self, text: str) -> str:
        """Returns text without the byte order mark that a file may begin with; further on it would be a character."""
        if self._is_at_start and text:
            self._is_at_start = False
            return text.removeprefix("\ufeff")
        return text

    def _heed_mark(self, start: bytes) -> None:
        """Decides by the byte order mark, if there is one. Raises UnknownEncodingError when it contradicts what was declared."""
        marked = next((encoding for mark, encoding in _MARKS if start.startswith(mark)), None)
        if marked is None:
            if self.declared == "utf-16":  # without a mark it is what Windows writes
                self.found = Detected("utf-16-le", "declared")
            return
        general = marked.removesuffix("-le").removesuffix("-be")
        if self.found is None:
            self.found = Detected(general, "byte order mark")
        elif self.declared not in (marked, general):
            self.found = _NOT_TOLD
            found = f"{self.declared} is declared, and the file begins with the byte order mark of {marked}"
            raise UnknownEncodingError(found, mend="`auto` reads it")

    def _decided(self, runs: Iterator[bytes]) -> Iterator[bytes]:
        """Yields the runs; those that tell the encoding, and what comes with them, once it is told."""
        held: list[bytes] = []
        sample = b""
        for run in _with_damage_last(runs):
            if isinstance(run, DamagedStreamError):
                yield from self._settled(held, sample)
                raise run
            if self.found is None and not isinstance(run, RefusedLine) and not run.isascii():
                sample += b"".join(line + b"\n" for line in _telling(run))
            if not sample or self.found is not None:
                yield run
                continue
            held.append(run)
            if len(sample) >= _SAMPLE_BYTES or sum(map(len, held)) >= _MOST_HELD_BYTES:
                yield from self._settled(held, sample)
                held, sample = [], b""
        yield from self._settled(held, sample)

    def _settled(self, held: list[bytes], sample: bytes) -> Iterator[bytes]:
        if sample:
            self._tell(sample)
        yield from held

    def _tell(self, sample: bytes) -> None:
        try:
            self.found = detect(sample)
        except UnknownEncodingError:
            self.found = _NOT_TOLD
            raise

    def _transcoded(self, run: bytes) -> Iterator[bytes]:
        """Yields a run's lines as UTF-8."""
        if self.found is None or self.found.encoding == "utf-8" or isinstance(run, RefusedLine):
            self._is_at_start = False
            yield run
            return
        encoding = self.found.encoding
        try:
            text = run.decode(encoding)
        except UnicodeError:
            yield from self._line_by_line(run, encoding=encoding)
        else:
            yield self._unmarked(text).encode()

    def _line_by_line(self, run: bytes, *, encoding: str) -> Iterator[bytes]:
        """Yields a run's lines, those together that can be decoded."""
        good: list[bytes] = []
        for line in run.split(b"\n"):
            try:
                good.append(self._unmarked(line.decode(encoding)).encode())
            except UnicodeError as error:
                if good:
                    yield b"\n".join(good)
                    good = []
                yield RefusedLine.of(line, _problem_of(error, encoding=encoding))
        if good:
            yield b"\n".join(good)

    def _recoded(self, content: Iterator[bytes], *, encoding: str) -> Iterator[bytes]:
        """Yields blocks of UTF-16 or UTF-32 as UTF-8. What has no meaning becomes bytes that are no UTF-8, and is found where it is."""
        decoder = codecs.getincrementaldecoder(encoding)(_PASSED_ON)
        for block in content:
            yield self._unmarked(decoder.decode(block)).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")  # half a character at the end


def detect(data: bytes) -> Detected:
    """Returns the encoding of some text that is not all ASCII. Pure.

    Raises:
        UnknownEncodingError: nothing fits, too little is there to tell, or two readings are about as likely.
    """
    if (evidence := _utf8_evidence(data)) is not None:
        return Detected("utf-8", evidence)
    sample = b"\n".join(_telling(data))
    num_bytes = len(sample.translate(None, _ASCII))
    if num_bytes < _LEAST_EVIDENCE:
        raise UnknownEncodingError(f"not UTF-8, and {num_bytes} bytes beyond ASCII are too few to tell what else")
    return _likeliest(sample)


def _telling(data: bytes) -> Iterator[bytes]:
    """Yields lines that are not all ASCII until they are enough for a sample; whole, since a character cut in two is no text."""
    size = 0
    for line in data.split(b"\n"):
        if size >= _SAMPLE_BYTES:
            return
        if not line.isascii():
            yield line
            size += len(line)


def _utf8_evidence(data: bytes) -> EncodingEvidence | None:
    """Returns what speaks for UTF-8, if anything: that it is, or that it is but for a little damage."""
    text = data.decode("utf-8", "replace")
    num_broken = text.count(_REPLACEMENT) - data.count(_REPLACEMENT.encode())
    if not num_broken:
        return "strict UTF-8"
    num_beyond = len(text) - len(text.encode("ascii", "ignore"))
    return "UTF-8 but for some damage" if num_broken <= _MOST_DAMAGE * num_beyond else None


def _likeliest(sample: bytes) -> Detected:
    from charset_normalizer import from_bytes  # only here: few corpora need it

    names = {name.replace("-", "_"): name for name in _CANDIDATES}
    # in one chunk: the library cuts chunks at any byte, and half a character is no text in any encoding
    matches = from_bytes(sample, steps=1, chunk_size=len(sample), cp_isolation=list(names), enable_fallback=False, preemptive_behaviour=False)
    readings: dict[str, _Reading] = {}
    for match in matches:
        text = str(match)
        same = [name for name in _CANDIDATES if _decodes_to(sample, text, encoding=name)]
        reading = _Reading(match.coherence - match.chaos, same[0] if same else names[match.encoding])
        readings[text] = max(readings.get(text, reading), reading)
    if not readings:
        raise UnknownEncodingError("neither UTF-8 nor text in any encoding that is looked for")
    best, *others = sorted(readings.values(), key=lambda reading: -reading.likelihood)
    if others and best.likelihood - others[0].likelihood < _LEAST_MARGIN:
        raise UnknownEncodingError(f"not UTF-8; {best.encoding} and {others[0].encoding} are about as likely")
    return Detected(best.encoding, "detected")


class _Reading(NamedTuple):
    """What a sample is as text in some encoding, which is the first candidate that gives this text."""

    likelihood: float
    encoding: str


def _decodes_to(sample: bytes, text: str, *, encoding: str) -> bool:
    try:
        return sample.decode(encoding) == text
    except UnicodeError:
        return False


def _problem_of(error: UnicodeError, *, encoding: str) -> Problem:
    place = f"byte {error.start}: {error.reason}" if isinstance(error, UnicodeDecodeError) else str(error)
    return Problem(Reason.UNDECODABLE, f"{encoding}, {place}")


def _with_damage_last(runs: Iterator[bytes]) -> Iterator[bytes | DamagedStreamError]:
    """Yields the runs, and the damage that ends them instead of raising it, so that what is held can go first."""
    try:
        yield from runs
    except DamagedStreamError as damage:
        yield damage


def _passed_on(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of codecs: half of a surrogate pair stays, and any other bytes without meaning become one. Neither can be UTF-8."""
    try:
        return codecs.lookup_error("surrogatepass")(error)
    except UnicodeDecodeError as meaningless:
        return "\udfff", meaningless.end


_PASSED_ON = "headrace-passed-on"
codecs.register_error(_PASSED_ON, _passed_on)
