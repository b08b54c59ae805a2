"""Conversations become the JSON that the later stages read; what is none is quarantined with its reason."""

import json
from typing import Any

import pytest

from tasks.validate.conversations import with_conversations
from tasks.validate.problem import Problem, Reason
from tasks.validate.records import Record

TALK = [{"role": "user", "content": "hello 世界"}, {"content": "yes", "role": "assistant"}]


def record(value: Any, **others: Any) -> Record:
    return Record(7, {"messages": value} | others, None, b"raw")


@pytest.mark.parametrize("value", [TALK, json.dumps(TALK), json.dumps(TALK, indent=2, ensure_ascii=False)])
def test_a_list_and_its_json_are_the_same_document(value: Any) -> None:
    (found,) = with_conversations([record(value, id=3)], column="messages")
    assert found.problem is None
    assert found.fields is not None
    assert found.fields["id"] == 3
    assert found.fields["messages"] == '[{"content":"hello 世界","role":"user"},{"content":"yes","role":"assistant"}]'


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ("hello", "is no JSON"),
        ([], "list of messages"),
        ({"role": "user"}, "list of messages"),
        (5, "list of messages"),
        (["hello"], "message 0 must be an object with a role"),
        ([*TALK, {"content": "x"}], "message 2 must be an object with a role"),
        ([{"role": "assistant", "content": 5}], "content of message 0"),
        (TALK[:1], "nothing to learn"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_raw_bytes(value: Any, detail: str) -> None:
    (found,) = with_conversations([record(value)], column="messages")
    assert found.fields is None
    assert found.problem is not None
    assert found.problem.reason is Reason.NO_CONVERSATION
    assert detail in found.problem.detail
    assert (found.row, found.raw) == (7, b"raw")


def test_a_message_may_have_no_content_but_a_call() -> None:
    call = [TALK[0], {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}]
    (found,) = with_conversations([record(call)], column="messages")
    assert found.fields is not None
    assert json.loads(found.fields["messages"]) == call


@pytest.mark.parametrize("untouched", [Record(1, None, Problem(Reason.INVALID_JSON), b"{"), record(None), Record(1, {"text": "x"}, None, b"")])
def test_what_the_rules_refuse_anyway_is_left_to_them(untouched: Record) -> None:
    assert with_conversations([untouched], column="messages") == [untouched]
