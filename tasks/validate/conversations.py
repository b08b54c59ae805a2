"""Records of sources that hold conversations (`kind: chat`): the text of such a document is the JSON of its messages."""

from collections.abc import Sequence
from typing import Any

import orjson

from tasks.validate.problem import Problem, Reason
from tasks.validate.records import Batch, Columns, Record

_FORM = orjson.OPT_SORT_KEYS
"""Equal conversations have equal texts, so that copies are found."""


def with_conversations(batch: Batch, *, column: str) -> Sequence[Record]:
    """Returns the records of a batch with the conversation in `column`, a list or its JSON, as canonical JSON; those without one have a problem.

    A conversation is a list of at least one object with a `role`, and something in it is said by an assistant: else nothing could be learned.
    """
    records = map(batch.record, range(len(batch))) if isinstance(batch, Columns) else batch
    return [_record(record, column=column) for record in records]


def _record(record: Record, *, column: str) -> Record:
    if record.fields is None or record.fields.get(column) is None:
        return record  # what is missing or null is for the rules to say
    messages = record.fields[column]
    if isinstance(messages, str):
        try:
            messages = orjson.loads(messages)
        except orjson.JSONDecodeError as error:
            return _refused(record, f"{column!r} is no JSON: {error}")
    problem = _problem_of(messages)
    if problem:
        return _refused(record, problem)
    record.fields[column] = orjson.dumps(messages, option=_FORM).decode()
    return record


def _refused(record: Record, detail: str) -> Record:
    raw = record.raw if record.raw is not None else orjson.dumps(record.fields, default=str)
    return record._replace(fields=None, problem=Problem(Reason.NO_CONVERSATION, detail), raw=raw)


def _problem_of(messages: Any) -> str:
    """Returns why a value is no conversation; empty when it is one."""
    if not isinstance(messages, list) or not messages:
        return "must be a list of messages"
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"message {number} must be an object with a role"
        if not isinstance(message.get("content"), str | list | None):
            return f"the content of message {number} is neither text nor a list"
    return "" if any(message["role"] == "assistant" for message in messages) else "no message is an assistant's, so there is nothing to learn"
