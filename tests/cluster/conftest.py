"""Jobs of which everything but the supervisor is a script."""

from pathlib import Path

import pytest

from tests.fakes.scripted_job import ScriptedJob


@pytest.fixture
def stage(tmp_path: Path) -> ScriptedJob:
    return ScriptedJob(tmp_path)
