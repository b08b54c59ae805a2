"""Steps for conversations, whose text is the JSON of their messages: what changes text changes each message, what judges text judges all of them.

Rules of quality are rules for prose from the web, and are not asked about conversations.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from tasks.prepare.steps import Outcome, Step

_FORM = orjson.OPT_SORT_KEYS
"""As `validate` writes conversations, so that equal ones stay equal."""


def spoken(text: str) -> str:
    """Returns what is said in a conversation, message by message, without its JSON."""
    return "\n\n".join(_contents(orjson.loads(text)))


class EachMessage:
    """Applies a step that changes text to every message. A message of which nothing is left is empty, and the conversation stays."""

    def __init__(self, step: Step) -> None:
        """Args: step: one that refuses nothing but texts of which nothing is left."""
        self._step = step

    @property
    def name(self) -> str:
        """The step's name."""
        return self._step.name

    def apply(self, texts: Sequence[str]) -> list[Outcome]:
        """Returns each conversation with changed messages, and what was done in them together."""
        return [self._changed(text) for text in texts]

    def _changed(self, text: str) -> Outcome:
        messages = orjson.loads(text)
        outcomes = iter(self._step.apply(list(_contents(messages))))
        counts: Counter[str] = Counter()

        def change(_: str) -> str:
            outcome = next(outcomes)
            counts.update(outcome.counts)
            return outcome.text or ""

        changed = [{**message, "content": _map(message.get("content"), change)} if "content" in message else message for message in messages]
        return Outcome(text if changed == messages else orjson.dumps(changed, option=_FORM).decode(), counts=counts)


class AllMessages:
    """Asks a step that judges text about all that is said."""

    def __init__(self, step: Step) -> None:
        """Args: step: one that changes nothing."""
        self._step = step

    @property
    def name(self) -> str:
        """The step's name."""
        return self._step.name

    def apply(self, texts: Sequence[str]) -> list[Outcome]:
        """Returns each conversation as it is, or its refusal."""
        outcomes = self._step.apply([spoken(text) for text in texts])
        return [outcome if outcome.text is None else Outcome(text, counts=outcome.counts) for text, outcome in zip(texts, outcomes, strict=True)]


def _contents(messages: Any) -> Iterator[str]:
    """Yields the texts of all messages in order; a content may be a text, or a list of parts of which some hold one."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            yield from (part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))


def _map(content: Any, change: Callable[[str], str]) -> Any:
    """Returns a content with its texts changed, in the order of `_contents`."""
    if isinstance(content, str):
        return change(content)
    if isinstance(content, list):
        return [{**part, "text": change(part["text"])} if isinstance(part, dict) and isinstance(part.get("text"), str) else part for part in content]
    return content
