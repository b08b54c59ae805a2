"""Conversations to ids, and which of them training learns: what assistants say.

A conversation is a JSON list of messages with `role` and `content`, and whatever else its template reads. The tokenizer's chat template, a Jinja
program that transformers runs in a sandbox, makes one text of it; ids are those that `apply_chat_template(…, sanitize_control_tokens=True)` gives.
So the special tokens that the template writes are special, and those that somebody says are ordinary text: nobody can feign a turn.

What an assistant says is what the template puts between `{% generation %}` marks. A template without them is run for the beginnings of the
conversation as well: a turn is what is added to the prompt for it, the token that ends it included.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError
from schemas.frozen import Frozen
from tasks.tokenizer.engine import Encoded, load_tokenizer

if TYPE_CHECKING:
    from jinja2.ext import Extension

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOCK = "strftime_now"
_NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Unicode keeps these from text, so two of them can mark what somebody says. One that occurs all the same is not used."""
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SHOWN = 10

Span = tuple[int, int]
"""Characters from … to of a text."""
Message = Mapping[str, Any]
Places = Callable[[Set[str]], Mapping[str, str]]
"""Says where documents are from, by their names, as far as it is known."""


class ChatTemplate(Frozen):
    """How conversations become text."""

    source: str
    """Jinja."""
    tokens: tuple[tuple[str, str], ...]
    """Names and texts of special tokens, which templates may use."""

    @classmethod
    def of_tokenizer(cls, config_json: bytes) -> "ChatTemplate":
        """Returns the template in a `tokenizer_config.json`.

        Raises:
            InputError: there is none, it is no Jinja, or it reads the clock.
        """
        config = json.loads(config_json)
        source = config.get("chat_template")
        mend = "set tokenizer.chat_template to a Jinja template, as transformers' apply_chat_template takes it"
        if isinstance(source, list):  # named templates, as transformers once stored them
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        if not isinstance(source, str):
            raise InputError("the tokenizer has no chat template", why="corpus.sources holds conversations (kind: chat)", mend=mend)
        if _CLOCK in source:
            raise InputError("the chat template reads the clock (strftime_now)", why="equal conversations must give equal ids", mend=mend)
        template = cls(source=source, tokens=tuple((name, text) for name in _TOKENS if (text := _text_of(config.get(name))) is not None))
        template.check()
        return template

    @property
    def marks_generation(self) -> bool:
        """Whether it says by itself what an assistant says."""
        return _GENERATION.search(self.source) is not None

    def check(self) -> None:
        """Raises InputError when it is no Jinja. Without transformers, whose import takes seconds: a plan asks, too."""
        from jinja2 import Environment, TemplateSyntaxError

        try:
            Environment(extensions=["jinja2.ext.loopcontrols", _generation_tag()]).compile(self.source)  # noqa: S701  # renders nothing
        except TemplateSyntaxError as error:
            mend = "correct tokenizer.chat_template, or the tokenizer's own"
            raise InputError(f"the chat template is no Jinja: line {error.lineno}", why=str(error.message), mend=mend) from error

    def compile(self) -> None:
        """Compiles it, for this process and those that it forks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        render_jinja_template(conversations=[], chat_template=self.source)

    def render(self, messages: Sequence[Message], *, for_answer: bool = False) -> tuple[str, list[Span]]:
        """Returns the text, and the spans that it marks itself. `for_answer`: end it with what precedes an assistant's answer."""
        from transformers.utils.chat_template_utils import render_jinja_template

        marks = self.marks_generation and not for_answer
        options: dict[str, Any] = {"return_assistant_tokens_mask": marks, "add_generation_prompt": for_answer, **dict(self.tokens)}
        texts, spans = render_jinja_template(conversations=[list(messages)], chat_template=self.source, **options)
        return texts[0], list(spans[0]) if marks else []


def _generation_tag() -> "type[Extension]":
    """Returns the tag by which templates for transformers mark what assistants say."""
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser

    class GenerationTag(Extension):
        tags = {"generation"}

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationTag


@dataclass(frozen=True)
class Rendered:
    """A conversation as text."""

    text: str
    """The text; what somebody says and would be a special token stands between `markers`."""
    learned: tuple[Span, ...]
    """What assistants say in it."""
    markers: tuple[str, str] | None
    """None: nobody says such a thing."""


class ConversationEncoder:
    """Encodes conversations with Hugging Face `tokenizers`, about 5 MB per second and core."""

    def __init__(self, tokenizer_json: bytes, *, template: ChatTemplate) -> None:
        """Args: tokenizer_json: content of a `tokenizer.json`. template: its template."""
        template.compile()
        self._template = template
        self._tokenizer, self._plain = load_tokenizer(tokenizer_json), load_tokenizer(tokenizer_json)
        for tokenizer in (self._tokenizer, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._plain.encode_special_tokens = True  # encode them as the text they are
        special = sorted((token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")
        self._line_ids: list[int] = self._tokenizer.encode("\n", add_special_tokens=False).ids

    def encode(self, texts: Sequence[str], *, names: Sequence[str], places: Places | None = None) -> Encoded:
        """Returns the ids of conversations, and which of them are learned.

        Args:
            texts: each a JSON list of messages.
            names: what error messages call them.
            places: where they are from; asked for those that error messages name.

        Raises:
            InputError: the template refuses some, or does not tell what an assistant says. Names them.
        """
        from jinja2 import TemplateError

        ids: list[npt.NDArray[np.uint32]] = []
        learned: list[npt.NDArray[np.bool_]] = []
        refused: list[_Refused] = []
        for name, text in zip(names, texts, strict=True):
            try:
                own_ids, own_learned = self._encode(self.rendered(text))
            except (TemplateError, TypeError, ValueError, LookupError) as error:
                refused.append(_Refused(name, reason=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
                continue
            ids.append(own_ids)
            learned.append(own_learned)
        if refused:
            raise _refusal(refused, num_texts=len(texts), places=places)
        offsets = np.cumsum([0, *(part.size for part in ids)], dtype=np.int64)
        return Encoded(ids=np.concatenate([np.empty(0, np.uint32), *ids]), offsets=offsets, learned=np.concatenate([np.empty(0, bool), *learned]))

    def rendered(self, text: str) -> Rendered:
        """Returns a conversation as text. Raises what the template raises, and ValueError."""
        free = [char for char in _NONCHARACTERS if char not in text]
        messages = _without_nulls(json.loads(text))
        markers = None
        if any(self._special.search(said) for said in _strings(messages)):
            if len(free) < 2:
                raise ValueError("it holds special tokens and all of Unicode's noncharacters")
            markers = free[0], free[1]
            messages = _marked(messages, self._special, f"{markers[0]}\\g<0>{markers[1]}")
        whole, spans = self._template.render(messages)
        if not self._template.marks_generation:
            spans = list(self._turns(messages, whole))
        return Rendered(whole, learned=tuple(spans), markers=markers)

    def _turns(self, messages: Sequence[Message], whole: str) -> Iterator[Span]:
        """Yields what assistants say, each from the end of its prompt to the end of its turn."""
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = self._template.render(messages[:index], for_answer=True)[0], self._template.render(messages[: index + 1])[0]
                if not (whole.startswith(after) and after.startswith(before)):
                    why = "so what an assistant says cannot be told; put {% generation %} marks into the template"
                    raise ValueError(f"message {index} is not written the same whatever follows, {why}")
                yield len(before), len(after)

    def _encode(self, rendered: Rendered) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Returns ids, and which of them lie in what is learned."""
        ids: list[int] = []
        spans: list[Span] = []
        for start, piece, is_plain in _pieces(rendered):
            own_ids, own_spans = self._encode_piece(piece, is_first=not start, is_plain=is_plain)
            ids += own_ids
            spans += [(first + start, last + start) for first, last in own_spans]
        firsts, lasts = np.array(spans, dtype=np.int64).reshape(-1, 2).T
        learned = np.zeros(len(ids), dtype=bool)
        for begin, end in rendered.learned:
            learned |= (np.maximum(lasts, firsts + 1) > begin) & (firsts < end)
        return np.array(ids, dtype=np.uint32), learned

    def _encode_piece(self, piece: str, *, is_first: bool, is_plain: bool) -> tuple[list[int], list[Span]]:
        """Returns ids and their characters. Behind the first piece a line break goes before it, so that no space is put where no text begins."""
        tokenizer = self._plain if is_plain else self._tokenizer
        if not is_first:
            encoding, skipped = tokenizer.encode("\n" + piece, add_special_tokens=False), len(self._line_ids)
            if encoding.ids[:skipped] == self._line_ids:
                return encoding.ids[skipped:], [(max(0, first - 1), last - 1) for first, last in encoding.offsets[skipped:]]
        encoding = tokenizer.encode(piece, add_special_tokens=False)
        return encoding.ids, encoding.offsets


class _Refused(NamedTuple):
    """A conversation that the template refuses."""

    name: str
    reason: str


def _refusal(refused: Sequence[_Refused], *, num_texts: int, places: Places | None) -> InputError:
    """Returns the error that names refused conversations, some of many."""
    shown = refused[:_SHOWN]
    known = places({name for name, _ in shown}) if places is not None else {}
    lines = [f"    {f'{known[name]} (document {name})' if name in known else f'document {name}'}: {reason}" for name, reason in shown]
    if len(refused) > _SHOWN:
        lines.append(f"    … and {len(refused) - _SHOWN:,} more")
    return InputError(
        "\n".join([f"the chat template refuses {len(refused):,} of {num_texts:,} conversations", *lines]),
        why="what it cannot write has no ids, and nothing is left out without a word",
        mend="mend these records or take them out of the source, or set another tokenizer.chat_template",
    )


def _pieces(rendered: Rendered) -> Iterator[tuple[int, str, bool]]:
    """Yields the pieces of a text between markers: where each starts, its text, and whether special tokens are ordinary text in it."""
    if rendered.markers is None:
        yield 0, rendered.text, False
        return
    start, is_plain = 0, False
    for part in re.split(f"([{''.join(rendered.markers)}])", rendered.text):
        if part in rendered.markers:
            is_plain = part == rendered.markers[0]
        elif part:
            yield start, part, is_plain
        start += len(part)


def _text_of(token: Any) -> str | None:
    """Returns the text of a token, which may be stored as an object."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _without_nulls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the messages without keys that are null, as transformers hands them to templates."""
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _strings(value: Any) -> Iterator[str]:
    """Yields every text in a JSON value, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)


def _marked(value: Any, pattern: re.Pattern[str], replacement: str) -> Any:
    """Returns a JSON value with a replacement made in every text but keys."""
    if isinstance(value, str):
        return pattern.sub(replacement, value)
    if isinstance(value, Mapping):
        return {key: _marked(item, pattern, replacement) for key, item in value.items()}
    return [_marked(item, pattern, replacement) for item in value] if isinstance(value, list) else value
