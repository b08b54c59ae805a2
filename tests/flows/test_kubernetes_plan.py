"""`headrace plan` for Kubernetes, as a user types it: what it prints is valid today, and a real API server takes it and keeps every field of it.

An old server drops what it does not know without a word: so what was sent is compared with what is kept.
"""

import subprocess
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from schemas.cluster_config import ClusterKind
from schemas.stage import Stage, stages_of
from tests.chaos.kubernetes_trouble import Place, place
from tests.fakes.kubernetes_cluster import CACHE, folder
from tests.fakes.kubernetes_objects import losses
from tests.fakes.tiny_pipeline import ROOT, Project

pytestmark = [pytest.mark.slow, pytest.mark.kubernetes]

SHIPPED = {path.stem: path for path in sorted((ROOT / "infra/recipes").glob("*.yaml"))}
KUBERNETES = [name for name, path in SHIPPED.items() if yaml.safe_load(path.read_text())["cluster"]["kind"] == ClusterKind.KUBERNETES]
WRITTEN_BY_INIT = "init"


@pytest.fixture
def here(kubernetes_nodes: Any, tmp_path: Path) -> Iterator[Place]:
    with place(kubernetes_nodes, tmp_path) as found:
        yield found


def plan_of(name: str, project: Project, *, namespace: str) -> list[str]:
    """The words of a command that plans a recipe, on text that is there."""
    (project.folder / "text").mkdir()
    (project.folder / "text" / "a.txt").write_text("some text\n" * 100)
    words = ["--set", f"cluster.namespace={namespace}"]
    if name == WRITTEN_BY_INIT:
        written = project.here("init", "mine.yaml", "--text", "text", "--cluster", "kubernetes")
        assert written.code == 0, written.err
        return ["plan", "mine.yaml", *words]
    volumes = yaml.safe_load(SHIPPED[name].read_text())["cluster"]["kubernetes"]["volumes"]
    volumes.append({"mount": str(project.folder), "claim": "text", "read_only": True})
    changes = {"corpus.sources": [f"{project.folder}/text"], "state": f"{project.folder}/state", "cluster.kubernetes.volumes": volumes}
    return ["plan", str(SHIPPED[name]), *words, *chain.from_iterable(("--set", f"{key}={value}") for key, value in changes.items())]


def take(here: Place, manifest: dict[str, Any], **query: str) -> list[str]:
    """Sends a manifest to the API server; returns what was lost."""
    return list(losses(manifest, here.api.call("POST", here.api.objects(f"{manifest['kind'].lower()}s"), query=query, body=manifest)))


def would_create(here: Place, text: str) -> int:
    """How many of the documents the API server would create, by the words of `kubectl`."""
    at = (f"--kubeconfig={here.lab.kubeconfig}", f"--cache-dir={here.folder}/kubectl")
    argv = (str(folder(CACHE) / "kubectl"), *at, "create", "--dry-run=server", "--filename=-")
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.count("created (server dry run)")


def test_a_recipe_ships_for_kubernetes() -> None:
    assert KUBERNETES


@pytest.mark.parametrize("name", [*KUBERNETES, WRITTEN_BY_INIT])
def test_what_is_printed_is_valid_today_and_taken_by_a_real_api_server(name: str, here: Place, tmp_path: Path) -> None:
    project = Project(tmp_path)
    words = plan_of(name, project, namespace=here.name)
    done = project.headrace(*words)
    assert done.returncode == 0, done.stderr
    printed, scripts = done.stdout[done.stdout.index("\napiVersion: ") :], project.answer(*words)["scripts"]
    assert list(scripts) == [stage for stage in stages_of(prepared=False) if stage is not Stage.REGISTER]
    service, *pods = yaml.safe_load_all(scripts[Stage.TRAIN])
    manifests = list(yaml.safe_load_all("---\n".join(scripts.values())))
    assert list(yaml.safe_load_all(printed)) == [service, pods[-1]]
    assert would_create(here, printed) == 2
    for manifest in manifests:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
        assert take(here, manifest, dryRun="All") == []
        assert take(here, manifest) == []
    kept = {each["metadata"]["name"]: each["spec"] for kind in ("services", "pods") for each in here.objects(kind)}
    assert [lost for manifest in manifests for lost in losses(manifest["spec"], kept[manifest["metadata"]["name"]])] == []
    assert [name for name, spec in kept.items() if "nodeName" in spec] == [], "there are no such claims: nothing runs"


def test_a_field_that_the_server_does_not_know_is_noticed(here: Place, tmp_path: Path) -> None:
    project = Project(tmp_path)
    words = plan_of(WRITTEN_BY_INIT, project, namespace=here.name)
    newer = "cluster.kubernetes.pod_patch={spec: {schedulingGates: [{name: example.com/later}]}}"
    *_, pod = yaml.safe_load_all(project.answer(*words, "--set", newer)["scripts"][Stage.TRAIN])
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    (lost,) = take(here, pod, dryRun="All")
    assert lost.startswith(".spec.schedulingGates")
