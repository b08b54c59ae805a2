"""The automations for production are what Prefect accepts."""

import uuid
from pathlib import Path

import yaml
from prefect.events.schemas.automations import AutomationCore, EventTrigger

FILE = Path(__file__).resolve().parents[2] / "infra" / "automations.yaml"
BLOCK = str(uuid.uuid4())


def test_prefect_takes_every_automation() -> None:
    text = FILE.read_text(encoding="utf-8").replace("block_document_id: NOTIFICATION_BLOCK", f"block_document_id: {BLOCK}")
    automations = [AutomationCore.model_validate(automation) for automation in yaml.safe_load(text)["automations"]]
    assert [automation.name for automation in automations] == ["headrace-failed", "headrace-silent", "headrace-waiting", "headrace-proposed"]
    for automation in automations:
        assert isinstance(automation.trigger, EventTrigger)
        assert automation.trigger.for_each == {"prefect.resource.id"}, "one silent run must not hide behind another"
        assert [str(getattr(action, "block_document_id", "")) for action in automation.actions] == [BLOCK]
