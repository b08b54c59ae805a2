"""The servers as a site's pods run them, on a real PostgreSQL: with a root that nobody can write, and with their own probes."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.kubernetes_pods import Namespace
from tests.fakes.kubernetes_site import host_folders, pod_spec_of, rendered
from tests.fakes.postgres_server import PostgresServer
from tests.fakes.prefect_lab import wait_until
from tests.fakes.server_process import free_port
from tests.fakes.tiny_pipeline import ROOT

Json = dict[str, Any]
pytestmark = [pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.kubernetes, pytest.mark.services]


def server_pod(name: str, *, port: int, **changes: str) -> Json:
    """Returns the pod of a Deployment as it is applied, but for what this machine wants: its files as the image, a free port, values for Secrets."""
    objects = rendered("volume")
    (workload,) = [found for found in objects if found["kind"] == "Deployment" and found["metadata"]["name"] == name]
    spec = pod_spec_of(workload)
    (container,) = spec["containers"]
    settings = {source["configMapRef"]["name"] for source in container.pop("envFrom")}
    env: Json = {key: value for found in objects if found["metadata"]["name"] in settings for key, value in found["data"].items()}
    env |= {each["name"]: each.get("value", "") for each in container["env"]} | changes
    env |= {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    container["env"] = [{"name": key, "value": value} for key, value in env.items()]
    container["image"] = "host"
    container["ports"] = [{**each, "containerPort": port} for each in container["ports"][:1]]
    volumes, mounts = host_folders()
    container["volumeMounts"] = [*(mount for mount in container["volumeMounts"] if mount["name"] == "tmp"), *mounts]
    spec["volumes"] = [{"name": "tmp", "emptyDir": {}}, *volumes]
    spec["securityContext"] = {}  # its Python may be root's alone
    spec.pop("serviceAccountName", None)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def is_ready(space: Namespace, name: str) -> bool:
    status = space.pod(name)["status"]
    assert status["phase"] in ("Pending", "Running"), space.log(name)[-3000:]
    assert not any(each.get("restartCount") for each in status.get("containerStatuses", [])), space.log(name, "?previous=true")[-3000:]
    return any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", []))


@pytest.mark.parametrize("name", ["headrace-prefect", "headrace-mlflow"])
def test_a_server_needs_no_more_than_it_gets(space: Namespace, database: PostgresServer, name: str) -> None:
    port, role = free_port(), name.replace("-", "_")
    if name == "headrace-prefect":
        url = {"PREFECT_API_DATABASE_CONNECTION_URL": database.loopback_url("asyncpg", role), "PREFECT_SERVER_API_PORT": str(port)}
        url["PREFECT_SERVER_API_AUTH_STRING"] = "somebody:something"
    else:
        url = {"MLFLOW_BACKEND_STORE_URI": database.loopback_url("psycopg", role), "MLFLOW_PORT": str(port)}
        url["MLFLOW_ARTIFACTS_DESTINATION"] = "/tmp/artifacts"
    made = server_pod(name, port=port, PGPASSWORD=database.passwords[role], **url)
    assert made["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    space.make("pods", made)
    wait_until(lambda: is_ready(space, name), what=lambda: space.log(name)[-3000:], timeout_s=240.0)  # the first start makes the tables
    assert "Read-only file system" not in space.log(name)
    space.delete(name)
