"""Killed in the middle, the next start gives the bytes of an undisturbed one."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.prepare.build import build
from tests.fakes.preparing import work_in
from tests.fakes.tiny_pipeline import ROOT
from tests.tasks.prepare.conftest import Prepared, write_accepted
from tests.tasks.prepare.test_build import NEAR, altered, corpus

PREPARATION: dict[str, Any] = {"normalization": "nfkc", "decontamination": {"ngram": 13}, "duplicates": NEAR}


def mixed_corpus() -> dict[Any, list[str]]:
    documents = corpus(groups=5)
    for group in range(4):
        documents[group, "train"][group] = altered(documents[group + 1, "train"][2], changes=3)
        documents[group, "train"][9] = "ﬁ " + documents[group, "test"][1]
    return documents


@pytest.mark.slow
def test_killed_at_any_step_the_next_start_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write_accepted(whole, mixed_corpus())
    undisturbed = work_in(whole, PREPARATION)
    expected = Prepared(undisturbed, build(undisturbed)).files  # type: ignore[arg-type]
    root = tmp_path / "killed"
    write_accepted(root, mixed_corpus())
    items = root / "prepare/test-000000000000/items"
    kills = 0
    for wanted in (1, 4, 8):
        process = subprocess.Popen([sys.executable, "-m", "tests.fakes.preparing", str(root), json.dumps(PREPARATION)], cwd=ROOT)
        deadline = time.monotonic() + 60
        while process.poll() is None and len(list(items.glob("*.json")) if items.exists() else []) < wanted and time.monotonic() < deadline:
            time.sleep(0.0005)
        process.kill()
        kills += process.wait() != 0
    assert kills >= 2, "most starts must have been killed before their end"
    work = work_in(root, PREPARATION)
    done = Prepared(work, build(work))  # type: ignore[arg-type]
    assert done.files == expected
    assert done.manifest.read == done.manifest.accepted + done.manifest.quarantined
