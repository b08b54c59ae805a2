"""What a site applies to its cluster, rendered."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.fakes.kubernetes_cluster import CACHE, folder
from tests.fakes.kubernetes_objects import losses
from tests.fakes.prefect_lab import wait_until
from tests.fakes.tiny_pipeline import ROOT

if TYPE_CHECKING:
    from lab.api import Api

Json = dict[str, Any]
KUBERNETES = ROOT / "infra/kubernetes"
BASE = KUBERNETES / "base"
OVERLAYS = ("volume", "bucket")
_NAMESPACES = ("headrace", "headrace-services")
KUBECTL = Path(folder(CACHE)) / "kubectl"


def host_folders(*more: Path) -> tuple[list[Json], list[Json]]:
    """Returns volumes and mounts of what pods read of this machine: a pod's own /tmp hides the image's, where all of it may lie."""
    folders = dict(enumerate(dict.fromkeys((*more, ROOT, Path(sys.prefix)))))
    volumes = [{"name": f"host-{number}", "hostPath": {"path": str(folder)}} for number, folder in folders.items()]
    return volumes, [{"name": f"host-{number}", "mountPath": str(folder)} for number, folder in folders.items()]


def rendered(overlay: str) -> list[Json]:
    """Returns all objects of an overlay."""
    done = subprocess.run((str(KUBECTL), "kustomize", str(KUBERNETES / "overlays" / overlay)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def pod_spec_of(workload: Json) -> Json:
    """Returns the pods' specification."""
    spec: Json = workload["spec"]["template"]["spec"]
    return spec


def path_of(found: Json) -> str:
    """Returns where objects of its kind are made."""
    group, namespace = found["apiVersion"], found["metadata"].get("namespace")
    plural = f"{found['kind'].lower()[:-1]}ies" if found["kind"].endswith("y") else f"{found['kind'].lower()}s"
    return f"/{'api' if group == 'v1' else 'apis'}/{group}{f'/namespaces/{namespace}' if namespace else ''}/{plural}"


@contextlib.contextmanager
def site_applied(cluster: Any) -> Iterator["Api"]:
    """Namespaces, accounts and rights as a site applies them, as long as the body; the servers are not begun."""
    api = cluster.api()

    def left() -> list[str]:
        return [item["metadata"]["name"] for item in api.get("/api/v1/namespaces")["items"] if item["metadata"]["name"] in _NAMESPACES]

    wait_until(lambda: not left(), what=left, timeout_s=60)  # of whoever applied it before: they go in their own time
    try:
        for found in rendered("volume"):
            if found["kind"] in ("Namespace", "ServiceAccount", "Role", "RoleBinding", "PersistentVolumeClaim", "NetworkPolicy"):
                assert list(losses(found, api.post(path_of(found), found))) == []
        yield api
    finally:
        for name in left():
            api.delete(f"/api/v1/namespaces/{name}")


def account(cluster: Any, name: str, *, namespace: str) -> "Api":
    """Returns the API as a service account sees it."""
    from lab.api import Api

    settings = json.loads(Path(cluster.service_account(name, namespace=namespace)).read_text())
    server, user = settings["clusters"][0]["cluster"], settings["users"][0]["user"]
    return Api(server["server"], token=user["token"], ca=server["certificate-authority"])
