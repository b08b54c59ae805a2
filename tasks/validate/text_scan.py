"""Which texts may break a rule: a few passes over the bytes of many, so that only those few are looked at by themselves (`rules.DocumentRules`)."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.corpus_config import RulesConfig
from tasks.validate.figures.arrow import bytes_of, offsets_of

_VISIBLE_ASCII = bytes(range(0x20, 0x7F)) + b"\t\n\v\f\r"
_ASCII = bytes(range(0x80))
_REPLACEMENT_CHARACTER = "\ufffd"
"""Stands for bytes that an earlier program could not decode, so it counts as unprintable."""
_SPACES_BEYOND_ASCII = "\u3000\xa0"
"""White space that is frequent in running text, and that `str.isprintable` does not let pass."""
_PARTS = 16
"""Parts that texts are divided into to find those few that have to be looked at."""
_SPACE, _LAST_ASCII = 0x20, 0x7F
_TAB, _AFTER_CARRIAGE_RETURN = 0x09, 0x0E
_LEADS_OF_SPACES = (0xC2, 0xE1, 0xE2, 0xE3)
"""First bytes of the characters beyond ASCII that are white space."""
_FIRST_SPACELESS_LEAD, _LAST_SPACELESS_LEAD = 0xE4, 0xEF
"""First bytes of characters of three bytes, none of which is white space: Han, Hangul, forms of full width."""


def doubtful_texts(texts: pa.StringArray, *, data: Sequence[bytes], chars: NDArray[np.int64], rules: RulesConfig) -> NDArray[np.bool_]:
    """Returns which texts may break a rule, [texts]; all others satisfy `min_chars`, `max_chars`, `min_printable_share`, and hold no NUL.

    Args:
        texts: without nulls.
        data: the same as bytes.
        chars: characters of each.
        rules: from the recipe.
    """
    content, offsets = bytes_of(texts), offsets_of(texts)
    doubtful = chars > rules.max_chars
    doubtful |= _may_be_short(content, offsets=offsets, data=data, chars=chars, min_chars=rules.min_chars)
    _mark(doubtful, _controls(content), offsets=offsets)
    doubtful[list(_with_hidden(content, offsets=offsets, data=data))] = True
    return doubtful


def num_unprintable(data: bytes) -> int:
    """Returns how many characters of UTF-8 text are neither printable nor white space: controls, unassigned and private code points, U+FFFD.

    ASCII goes by one C call (about 1 GB/s); of other text only the characters beyond ASCII are looked at, each kind once.
    """
    rest = data.translate(None, _VISIBLE_ASCII)
    if not rest:
        return 0
    beyond = rest.translate(None, _ASCII).decode()
    controls = len(rest) - len(beyond.encode())
    if beyond.isprintable() and _REPLACEMENT_CHARACTER not in beyond:
        return controls
    return controls + sum(count for char, count in Counter(beyond).items() if is_hidden(char))


def is_hidden(char: str) -> bool:
    """Whether a character is neither printable nor white space."""
    return char == _REPLACEMENT_CHARACTER or not (char.isprintable() or char.isspace())


def _controls(content: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Returns which bytes are ASCII controls that are no white space."""
    found = content - np.uint8(_AFTER_CARRIAGE_RETURN) < _SPACE - _AFTER_CARRIAGE_RETURN
    found |= content < _TAB
    found |= content == _LAST_ASCII
    return found


def _mark(texts: NDArray[np.bool_], found: NDArray[np.bool_], *, offsets: NDArray[np.int32]) -> None:
    """Marks the texts in which some byte was found."""
    if found.any():
        texts[np.searchsorted(offsets, np.flatnonzero(found), side="right") - 1] = True


def _with_hidden(content: NDArray[np.uint8], *, offsets: NDArray[np.int32], data: Sequence[bytes]) -> Iterator[int]:
    """Yields the texts that hold a character beyond ASCII that does not count as printable: in a part without any, no text is looked at."""
    beyond = content > _LAST_ASCII
    parts = [range(len(data))]
    while parts:
        part = parts.pop()
        place = slice(int(offsets[part.start]), int(offsets[part.stop]))
        found = content[place][beyond[place]]
        if not len(found) or not _holds_hidden(found.tobytes().decode()):
            continue
        if len(part) <= _PARTS:
            yield from (index for index in part if num_unprintable(data[index]))
        else:
            size = -(-len(part) // _PARTS)
            parts += [part[first : first + size] for first in range(0, len(part), size)]


def _holds_hidden(text: str) -> bool:
    """Whether text beyond ASCII holds a character that does not count as printable."""
    if _REPLACEMENT_CHARACTER not in text:
        for space in _SPACES_BEYOND_ASCII:
            text = text.replace(space, "")
        if text.isprintable():
            return False
    return any(map(is_hidden, set(text)))


def _may_be_short(
    content: NDArray[np.uint8], *, offsets: NDArray[np.int32], data: Sequence[bytes], chars: NDArray[np.int64], min_chars: int
) -> NDArray[np.bool_]:
    """Returns which texts have fewer characters than `min_chars` without the white space around them."""
    short = chars < min_chars
    if min_chars == 0:
        return short
    starts, stops = offsets[:-1], offsets[1:]
    there = np.flatnonzero(stops > starts)
    is_sure = _begins_with_text(content, starts[there])
    if min_chars > 1:
        is_sure &= _ends_with_text(content, starts[there], stops[there])
    for index in there[~is_sure].tolist():
        short[index] = len(data[index].decode().strip()) < min_chars
    return short


def _begins_with_text(content: NDArray[np.uint8], starts: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Returns which texts surely begin with something else than white space."""
    first = content[starts]
    found = first > _SPACE
    for lead in _LEADS_OF_SPACES:
        found &= first != lead
    return found


def _ends_with_text(content: NDArray[np.uint8], starts: NDArray[np.int32], stops: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Returns which texts surely end with something else than white space."""
    last, third_last = content[stops - 1], content[np.maximum(stops - 3, starts)]
    wide = (
        (last > _LAST_ASCII) & (third_last >= _FIRST_SPACELESS_LEAD) & (third_last <= _LAST_SPACELESS_LEAD) & (stops - starts >= len("字".encode()))
    )
    return wide | ((last > _SPACE) & (last <= _LAST_ASCII))
