"""`headrace doctor` on containers of Slurm jobs: each finding at a site that has the fault, made with programs in place of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.launchers.slurm_queue import SlurmError
from flows.checkup_containers import container_findings
from flows.finding import Finding
from schemas.config import RunConfig
from tests.fakes.in_process_work import config_with

Install = Callable[[str], None]
PYXIS_HELP = "      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH\n                              [pyxis] the image to use"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a program on a PATH that has no others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name: str) -> None:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)

    return put


def recipe(tmp_path: Path, **cluster: Any) -> RunConfig:
    image = tmp_path / "headrace.sif"
    image.touch()
    values = {"kind": "slurm", "container": "apptainer", "image": str(image), **cluster}
    sources = {"corpus": {"sources": ["/home/me/text"]}, "checkpoint": {"local_dir": "/local", "local_every_steps": 5}}
    return config_with(training={"steps": 200, "global_batch_size": 256, "micro_batch_size": 4}, state="/shared/state", cluster=values, **sources)


def look(config: RunConfig | None, *, srun: str | None = "") -> list[Finding]:
    def ask(argv: Sequence[str]) -> str:
        assert tuple(argv) == ("srun", "--help")
        if srun is None:
            raise SlurmError("srun is not on PATH")
        return srun

    return container_findings(config, project=Path("/home/me"), root="/shared/data", ask=ask)


def test_what_is_there_is_told_without_a_recipe(install: Install) -> None:
    (found,) = look(None, srun=None)
    assert (found["level"], found["what"]) == ("ok", "neither pyxis nor apptainer is here; only cluster.image needs one")
    install("apptainer")
    (found,) = look(None, srun=PYXIS_HELP)
    assert (found["level"], found["what"]) == ("ok", "pyxis, apptainer can start them")


def test_a_site_that_has_what_the_recipe_wants(install: Install, tmp_path: Path) -> None:
    install("apptainer")
    (found,) = look(recipe(tmp_path, mounts=["/local"]))
    assert (found["level"], found["what"]) == ("ok", "apptainer is here, and starts cluster.image")


@pytest.mark.parametrize(
    ("cluster", "level", "mend"),
    [
        ({}, "warning", 'add "module load apptainer" to cluster.setup'),
        ({"setup": ["module load apptainer/1.3"]}, "ok", ""),
        ({"container": "pyxis"}, "warning", "srun srun --help; here is singularity: set cluster.container"),
    ],
)
def test_a_runtime_that_is_not_here(install: Install, tmp_path: Path, cluster: dict[str, Any], level: str, mend: str) -> None:
    install("singularity")
    found, *_ = look(recipe(tmp_path, **cluster))
    assert found["level"] == level
    assert mend in found["mend"]


@pytest.mark.parametrize(
    ("cluster", "level", "says"),
    [
        ({"image": "/images/none.sif"}, "warning", "image /images/none.sif is not on this machine"),
        ({"image": "docker://ubuntu"}, "warning", "is fetched by every node for every job"),
        ({"mounts": []}, "error", "checkpoint.local_dir = /local: containers of train are not shown it"),
        ({"mounts": ["/local:/elsewhere"]}, "error", "checkpoint.local_dir = /local"),
    ],
)
def test_an_image_or_a_folder_that_is_not_there(install: Install, tmp_path: Path, cluster: dict[str, Any], level: str, says: str) -> None:
    install("apptainer")
    _, found = look(recipe(tmp_path, **{"mounts": ["/local"], **cluster}))
    assert found["level"] == level
    assert says in found["what"]
    assert found["mend"]


def test_text_that_containers_are_not_shown(install: Install, tmp_path: Path) -> None:
    install("apptainer")
    config = recipe(tmp_path, mounts=["/local"])
    other = config.model_copy(
        update={"corpus": config.corpus.model_copy(update={"sources": (config.corpus.sources[0].model_copy(update={"path": "/data/text"}),)})}
    )
    _, found = look(other)
    assert found["what"] == "corpus.sources.0 = /data/text: containers of validate are not shown it"
    assert found["mend"] == 'add "/data/text" to cluster.mounts'


def test_a_folder_that_cannot_be_shown(install: Install, tmp_path: Path) -> None:
    install("apptainer")
    found = container_findings(recipe(tmp_path), project=Path("/home/me"), root="/shared/a,b", ask=lambda _argv: "")
    assert [(each["level"], each["what"].partition(" ")[0]) for each in found] == [("error", "storage.root")]
