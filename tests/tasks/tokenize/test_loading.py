"""Items as forks of a process that has loaded what they need: nothing is loaded twice, and the shards are the same."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.agent.nursery import Nursery, Program
from cluster.environment import compute_environment
from cluster.storage import replace_local
from schemas.canonical import canonical_json
from schemas.errors import VerificationError
from schemas.job import ItemRecord, WorkPlan
from schemas.stage import Stage
from tasks.entry import config_of
from tasks.tokenize import loading
from tasks.tokenize.build import build
from tests.fakes.in_process_work import InProcessWork

SITE = Any  # the fixture's class lives in conftest, which is not importable


def forked(work: InProcessWork, plan: WorkPlan, *, options: Mapping[str, Any], loader: str) -> tuple[ItemRecord, ...]:
    """Runs all items at once, as an agent does: forks of a zygote that has loaded."""
    spec = work.root / "spec.json"
    replace_local(spec, canonical_json(work.task_spec(plan.step_name, options=options)))
    env = compute_environment(os.environ, extra={}, project_dir=str(Path.cwd()), threads=1, python=sys.executable)
    nursery = Nursery(preload=(), env=env, cwd=str(Path.cwd()), log=work.root / "zygote.log")
    try:
        nursery.load(loader, spec)
        log = work.root / "items.log"
        for item in plan.items:
            argv = ("--spec", str(spec), "--index", str(item.index))
            nursery.start(Program(name="item", module="tasks.tokenize.job", argv=argv, env={}, log=log))
        statuses: list[int] = []
        while len(statuses) < len(plan.items) and (ends := nursery.wait(60.0)):
            statuses += [end.status for end in ends]
    finally:
        nursery.close()
    assert statuses == [0] * len(plan.items), log.read_text()
    assert "not loaded ahead" not in (work.root / "zygote.log").read_text()
    return tuple(ItemRecord.model_validate_json(work.storage.read(work.layout.item(plan.step_name, item.index))) for item in plan.items)


@pytest.mark.slow
def test_items_that_are_forks_make_the_same_shards(site: SITE, monkeypatch: pytest.MonkeyPatch) -> None:
    """Had loading started a thread, it would be missing in the forks, and they would wait for it for ever."""
    calm, work = site.stage(key="tokenize/calm-000000000000"), site.stage(key="tokenize/forked-000000000000")
    draft = build(calm)
    monkeypatch.setattr(work, "run_array", lambda plan, *, module, options, reads, loader: forked(work, plan, options=options, loader=loader))
    again = build(work)
    assert (again.content_hash, again.files) == (draft.content_hash, draft.files)
    assert again.summary["shadow_checked_documents"] == draft.summary["shadow_checked_documents"] > 0


def spec_of(site: SITE, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns what an item of the site's stage gets."""
    work, seen = site.stage(), list[Any]()
    original = work.task_spec
    monkeypatch.setattr(work, "task_spec", lambda *given, **named: seen.append(original(*given, **named)) or seen[-1])
    build(work)
    return seen[0]


def test_it_is_loaded_once(site: SITE, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(site, monkeypatch)
    first = loading.loaded(spec, config=config_of(spec))
    assert loading.loaded(spec, config=config_of(spec)) is first
    assert first.reference is not None


def test_what_is_damaged_is_refused_not_remembered(site: SITE, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(site, monkeypatch)
    loading._loaded.cache_clear()
    path = Path(spec.input_dirs[Stage.TOKENIZER]) / "tokenizer.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    for _ in range(2):
        with pytest.raises(VerificationError, match=r"tokenizer\.json"):
            loading.loaded(spec, config=config_of(spec))
