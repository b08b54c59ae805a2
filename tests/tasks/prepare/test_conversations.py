"""Conversations: what is said is normalized, masked, judged and compared, and their JSON stays JSON."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from schemas.config import RunConfig
from schemas.stage import Stage
from tasks.prepare.build import build
from tasks.prepare.conversations import EachMessage, spoken
from tasks.prepare.steps import Outcome
from tests.fakes.in_process_work import InProcessWork, config_with
from tests.tasks.prepare.conftest import Documents, Prepared, write_accepted
from tests.tasks.prepare.test_build import altered, prose


def talk(*said: Any, **more: Any) -> str:
    """A conversation as `validate` writes it."""
    roles = ("user", "assistant")
    return orjson.dumps(
        [{"role": roles[index % 2], "content": content, **more} for index, content in enumerate(said)], option=orjson.OPT_SORT_KEYS
    ).decode()


def config_of(*, kind: str = "chat", **preparation: Any) -> RunConfig:
    return config_with(
        corpus={"sources": [{"path": "nowhere", "kind": kind, "format": "jsonl"}], "preparation": preparation},
        tokenizer={"chat_template": "{{ messages }}"},
    )


def prepared(root: Path, documents: Documents, **preparation: Any) -> Prepared:
    work = InProcessWork(root, Stage.PREPARE, config_of(**preparation), {Stage.VALIDATE: write_accepted(root, documents)})
    return Prepared(work, build(work))  # type: ignore[arg-type]  # as far as a stage asks, it is a Work


class Shout:
    """Turns letters into capitals, and leaves nothing of `gone`."""

    name = "shout"

    def apply(self, texts: Any) -> list[Outcome]:
        return [Outcome(None, "shout-empty") if text == "gone" else Outcome(text.upper(), counts={"text": 1}) for text in texts]


def test_a_changing_step_changes_every_text_and_nothing_else() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image", "url": "http://x"}, {"type": "text", "text": "two"}]
    (outcome,) = EachMessage(Shout()).apply([talk(parts, "three", None, "gone", 'said "so"', name="bob")])
    assert outcome.text is not None
    changed = orjson.loads(outcome.text)
    assert [message["content"] for message in changed[1:]] == ["THREE", None, "", 'SAID "SO"']
    assert [part.get("text") for part in changed[0]["content"]] == ["ONE", None, "TWO"]
    assert all(message["name"] == "bob" for message in changed)
    assert outcome.counts == {"text": 4}
    assert spoken(outcome.text) == 'ONE\n\nTWO\n\nTHREE\n\n\n\nSAID "SO"'


def test_normal_forms_and_placeholders_leave_valid_json(tmp_path: Path) -> None:
    text = talk("＂quoted＂ by ada@example.org", "ﬁne")
    done = prepared(tmp_path, {(0, "train"): [text]}, normalization="nfkc", pii={"mask": ["email"]})
    (left,) = done.texts()
    assert [message["content"] for message in orjson.loads(left)] == ['"quoted" by <email>', "fine"]
    assert [(step.name, step.changed) for step in done.stats.steps] == [("normalization", 1), ("pii", 1)]
    assert done.stats.steps[1].counts == {"email": 1}


def test_what_is_said_is_compared_without_roles_and_json(tmp_path: Path) -> None:
    documents: Documents = {
        (0, "train"): [talk(prose(1), altered(prose(2), changes=2), name="x"), talk(prose(3), "short"), talk(prose(4), f"it says {prose(5)}")],
        (0, "test"): [talk(prose(1), prose(2)), talk(prose(5), "yes")],
    }
    done = prepared(tmp_path, documents, decontamination={"ngram": 50, "min_shared_share": 0.3}, duplicates={"near": True})
    reasons = {row["row"]: row["reason"] for row in done.quarantined}
    assert reasons in ({0: "near-duplicate", 2: "contaminated"}, {0: "contaminated", 2: "contaminated"})
    assert done.texts("test") == documents[0, "test"]


def test_rules_for_prose_are_not_asked_about_conversations(tmp_path: Path) -> None:
    config = config_with(
        corpus={
            "sources": [{"path": "nowhere", "name": "source-0", "kind": "chat", "format": "jsonl"}, "prose"],
            "preparation": {"quality": {"gopher": True}},
        },
        tokenizer={"chat_template": "{{ messages }}"},
    )
    work = InProcessWork(tmp_path, Stage.PREPARE, config, {Stage.VALIDATE: write_accepted(tmp_path, {(0, "train"): [talk("hi", "hello")]})})
    assert Prepared(work, build(work)).manifest.quarantined == 0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"corpus\.preparation\.quality has no effect with conversations"):
        config_of(quality={"gopher": True})


def test_the_same_text_as_conversation_and_as_prose_is_prepared_as_two_things() -> None:
    one, other = (config_of(kind=kind, normalization="nfc").identity(Stage.PREPARE) for kind in ("text", "chat"))
    assert one != other
