"""A changed corpus on which the champion goes on learning: real weights, a real registry, a flow run as a schedule makes it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.prefect_lab import PrefectLab, prefect_serving
from tests.fakes.tiny_pipeline import Project

pytestmark = pytest.mark.exhaustive


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[PrefectLab]:
    (tmp_path / "prefect").mkdir()
    with prefect_serving(tmp_path / "prefect") as server:
        yield server


def scheduled(lab: PrefectLab, project: Project, on_change: str) -> str:
    """A flow run as a worker starts it; returns what its final state says."""
    call = "import sys; from flows.pretrain import pretrain; pretrain(recipe=sys.argv[1], overrides=('training.steps=20',), on_change=sys.argv[2])"
    argv = (sys.executable, "-c", call, str(project.recipe), on_change)
    done = subprocess.run(argv, env=project.environment(lab.env), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return str(lab.flow_runs()[-1]["state"]["message"])


def test_the_champion_goes_on_learning_once_for_each_change(finished: Project, lab: PrefectLab, tmp_path: Path) -> None:
    project = Project(tmp_path / "project", secrets=finished.secrets)
    shutil.copytree(finished.folder, project.folder)
    before = {path.parent.name for path in (project.root / "train").glob("*/record.json")}
    (project.folder / "text" / "zz_more.py").write_text("# more text\n" + "x = 1\n" * 400)

    scheduled(lab, project, "continue")
    (made,) = {path.parent.name for path in (project.root / "train").glob("*/record.json")} - before
    training = json.loads((project.root / "train" / made / "record.json").read_text())
    champion = next(folder for folder in (project.root / "export").iterdir() if made not in (folder / "record.json").read_text())
    run = json.loads((project.root / "runs" / training["provenance"]["run_id"] / "config.json").read_text())
    assert run["config"]["model"]["pretrained"] == str(champion / "model")
    assert set(training["outside"]) == {"pretrained"}, "the champion's content is part of what the new training is"
    tokenizers = [json.loads(path.read_text())["model"] for path in (project.root / "tokenizer").glob("*/tokenizer.json")]
    assert tokenizers[0] == tokenizers[-1], "the ids mean what they meant"
    segments = sorted((project.root / "train" / made / "metrics").glob("*-r0000-*.jsonl"))
    points = [json.loads(line) for path in segments for line in path.read_text().splitlines()]
    assert points[0]["values"]["loss"] < 5.0, "weights that know nothing begin at ln 400 = 6"

    assert scheduled(lab, project, "continue").startswith("nothing to do: models:/tiny")
    assert {path.parent.name for path in (project.root / "train").glob("*/record.json")} == before | {made}
