"""Both images as a site builds them, and the pipeline in pods that are made of them, with a site's rights."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.fakes.built_images import REQUIREMENTS, SIDES, BuiltImage, images_built
from tests.fakes.kubernetes_pods import Json, Namespace, pod
from tests.fakes.kubernetes_site import site_applied
from tests.fakes.prefect_lab import wait_until
from tests.fakes.tiny_pipeline import ROOT, make_project

UID = 10000
CANARY = "a-password-that-no-layer-has-9f2c71"
"""Always the same: layers that an earlier build has left are looked through for it, too."""
SHARED = "/mnt/headrace"
RESTRICTED: Json = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.kubernetes, pytest.mark.images]


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, BuiltImage]]:
    """Both, built with a password for the index of packages."""
    with images_built(pip_conf=f"[global]\nextra-index-url = https://user:{CANARY}@index.example/simple\n") as built:
        yield built


@pytest.fixture(scope="module")
def cluster(kubernetes_nodes: Any, images: dict[str, BuiltImage]) -> Any:
    """A cluster whose nodes know both."""
    for image in images.values():
        image.make_known(kubernetes_nodes)
    return kubernetes_nodes


def restricted(name: str, script: str, image: BuiltImage, *, shared: Path | None = None, **spec: Any) -> Json:
    """Returns a pod that may write to /tmp alone, and to a folder that pods share."""
    volumes: list[Json] = [{"name": "tmp", "emptyDir": {}}]
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]
    if shared is not None:
        volumes.append({"name": "shared", "hostPath": {"path": str(shared)}})
        mounts.append({"name": "shared", "mountPath": SHARED})
    container = {"image": image.name, "securityContext": RESTRICTED, "volumeMounts": mounts, "env": [{"name": "HOME", "value": "/tmp"}]}
    return pod(name, script, container=container, volumes=volumes, securityContext={"runAsNonRoot": True}, **spec)


def finishes(space: Namespace, name: str) -> str:
    """Waits until a pod has done its work. Returns what it printed."""
    wait_until(lambda: space.pod(name)["status"]["phase"] in ("Succeeded", "Failed"), what=lambda: space.log(name), timeout_s=400.0)
    assert space.pod(name)["status"]["phase"] == "Succeeded", space.log(name)
    return space.log(name)


def locked(name: str) -> set[str]:
    return {line.partition("==")[0] for line in (REQUIREMENTS / name).read_text().splitlines() if "==" in line}


@pytest.mark.parametrize("side", SIDES)
def test_an_image_says_what_it_is(images: dict[str, BuiltImage], side: str) -> None:
    config = images[side].config
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["title"] == f"headrace-{side}"
    assert images[side].name.endswith(f":{labels['version']}")
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", labels["revision"])
    assert labels["base.name"] == "localhost/headrace-base:bookworm"
    assert (config["User"], config["WorkingDir"]) == (f"{UID}:{UID}", "/opt/headrace")


@pytest.mark.parametrize("side", SIDES)
def test_only_what_is_needed_is_in_it(images: dict[str, BuiltImage], side: str) -> None:
    image = images[side]
    installed = {re.sub("[-_.]+", "-", path.name.partition("-")[0]).lower() for path in image.site_packages.glob("*.dist-info")}
    assert installed == locked(f"{side}.txt") | ({"torch"} if side == "ranks" else set())
    for name in ("gcc", "g++", "cc", "apt-get", "pip", "git"):
        assert not [path for path in ("usr/bin", "usr/local/bin", "opt/venv/bin") if (image.root / path / name).exists()], name
    assert not list(image.root.glob("opt/**/tests")) + list(image.root.glob("opt/headrace/*.lock"))
    assert (image.root / "opt/headrace/flows").exists() == (side == "control")
    for place in ("root", "tmp", "var/cache/apt", "var/lib/apt/lists", "wheels", "requirements"):
        assert not [path for path in (image.root / place).rglob("*") if path.is_file() and path.stat().st_size and path.name[0] != "."], place
    compiled = {path.name.partition(".")[0] for path in image.root.glob("opt/headrace/cluster/__pycache__/*.pyc")}
    assert compiled == {path.stem for path in image.root.glob("opt/headrace/cluster/*.py")}


@pytest.mark.parametrize("side", SIDES)
def test_a_password_for_the_index_is_in_no_layer(images: dict[str, BuiltImage], side: str) -> None:
    assert CANARY not in json.dumps(dict(images[side].about))
    found = subprocess.run(("grep", "--recursive", "--files-with-matches", "--text", CANARY, str(images[side].root)), capture_output=True, text=True)
    assert (found.stdout, found.returncode) == ("", 1)


@pytest.mark.parametrize("side", SIDES)
def test_the_bill_of_materials_is_whole(images: dict[str, BuiltImage], side: str) -> None:
    bill = json.loads(images[side].bill)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(images[side].bill) is None
    assert bill["metadata"]["component"]["version"] == f"sha256:{images[side].about['FromImageID']}"
    kinds: dict[str, dict[str, Json]] = {}
    for each in bill["components"]:
        kinds.setdefault(each["purl"].partition("/")[0].removeprefix("pkg:"), {})[each["name"].lower()] = each
    pins = dict(line.split("==") for line in (REQUIREMENTS / f"{side}.txt").read_text().splitlines() if "==" in line)
    assert {re.sub("[-_.]+", "-", name): each["version"] for name, each in kinds["pypi"].items() if name != "torch"} == pins
    assert len([each for each in kinds["pypi"].values() if each.get("licenses")]) > 0.9 * len(pins)
    assert {"libc6", "ca-certificates", "python3"} <= kinds["deb"].keys()
    assert all("distro=debian-12" in each["purl"] for each in kinds["deb"].values())
    assert kinds["generic"]["python"]["version"].startswith("3.11.")


def test_ranks_have_all_that_they_import_and_nothing_of_what_decides(cluster: Any, images: dict[str, BuiltImage], space: Namespace) -> None:
    jobs = sorted(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (ROOT / "tasks").glob("*/job.py"))
    imports = "; ".join(f"import {name}" for name in ["cluster.agent.agent", "tasks.evaluate.plot", *jobs])
    absent = "import importlib.util as u; print([n for n in ('prefect', 'mlflow', 'kubernetes', 'flows', 'pip') if u.find_spec(n)])"
    script = f'set -e; id -u; ! touch /opt/headrace/x /root/x 2>/dev/null; cd /; python3 -P -c "{imports}"; python3 -P -c "{absent}"'
    space.make("pods", restricted("ranks", script, images["ranks"]))
    assert finishes(space, "ranks").split("\n")[:2] == [str(UID), "[]"]


def test_the_pipeline_runs_in_pods_of_both(cluster: Any, images: dict[str, BuiltImage], tmp_path: Path) -> None:
    """Who decides is a pod with the flow's rights, and asks for the pods that compute; all roots are read-only."""
    shared = tmp_path / "shared"
    changes = {
        "storage.root": f"{SHARED}/data",
        "state": f"{SHARED}/state",
        "cluster.kind": "kubernetes",
        "cluster.namespace": "headrace",
        "cluster.image": images["ranks"].name,
        "cluster.ranks_per_node": 1,
        "cluster.stages": {"train": {"nodes": 2}},
        "cluster.kubernetes": {"service_account": "headrace-pods", "volumes": [{"mount": SHARED, "host_path": str(shared)}]},
    }
    make_project(shared / "project", changes=changes)
    subprocess.run(("chown", "--recursive", f"{UID}:{UID}", str(shared)), check=True)
    script = f"set -e; headrace --version; cd {SHARED}/project; headrace doctor tiny.yaml; headrace run tiny.yaml"
    account = {"serviceAccountName": "headrace-flow", "automountServiceAccountToken": True}
    with site_applied(cluster) as api:
        space = Namespace(api, "headrace", is_there=True)
        space.make("pods", restricted("flow", script, images["control"], shared=shared, **account))
        said = finishes(space, "flow")
        wait_until(lambda: space.pods() == ["flow"], what=space.pods)  # nothing of its jobs is left, once the nodes have heard of it
    assert said.startswith(f"headrace {images['control'].name.rpartition(':')[2]}\n")
    assert "as locked in control.txt" in said
    assert len(list(shared.glob("data/register/*/record.json"))) == 1
    (training,) = shared.glob("data/train/*/record.json")
    assert training.stat().st_uid == UID
