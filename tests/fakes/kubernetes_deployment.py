"""Deployments of flows on the tests' Kubernetes cluster: Prefect's own worker with no more rights than at a site, and our base job template."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from flows.deployment import base_job_template, deploy_all
from tests.fakes.kubernetes_site import KUBERNETES
from tests.fakes.prefect_lab import PrefectLab

Json = dict[str, Any]
POOL = "headrace-kubernetes"
JOBS, PODS = "/apis/batch/v1/namespaces/headrace/jobs", "/api/v1/namespaces/headrace/pods"
QUICK = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "2",
    "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES": "headrace",
}
"""The worker looks for flow runs every second, and observes the namespace of Jobs, as at a site."""


def deploy_flow(lab: PrefectLab, deployment: Json, *, file: Path, variables: Json) -> str:
    """Deploys a flow as `headrace deploy` would, with the shipped template; returns the deployment's id. Settings are those of this process.

    Args:
        lab: Prefect's server.
        deployment: an entry of prefect.yaml, but for its work pool.
        file: where that prefect.yaml is written, its template beside it.
        variables: the deployment's own job variables.
    """
    template = base_job_template(KUBERNETES / "base-job-template.yaml")
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    pod["securityContext"] = {"runAsUser": 0}  # this machine's files are the image, and its Python may be root's alone
    (file.parent / "template.yaml").write_text(yaml.safe_dump(template))
    pool = {"name": POOL, "type": "kubernetes", "base_job_template": "template.yaml", "job_variables": variables}
    file.write_text(yaml.safe_dump({"name": "test", "deployments": [{**deployment, "work_pool": pool}]}))
    assert deploy_all(pool=POOL, file=file)["pools"] == [POOL]
    flow = str(deployment["entrypoint"]).rpartition(":")[2]
    return str(lab.get(f"deployments/name/{flow}/{deployment['name']}")["id"])


@contextmanager
def working(lab: PrefectLab, cluster: Any, folder: Path) -> Iterator[None]:
    """Runs the worker as long as the body, with its service account's rights and no others; what it prints goes to `worker.log` in `folder`."""
    account = cluster.service_account("headrace-worker", namespace="headrace-services")
    argv = (sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "kubernetes")
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(argv, env={**lab.env, "KUBECONFIG": str(account)}, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def said(folder: Path, api: Any) -> str:
    """Returns what the worker printed last, and what became of the pods."""
    pods = [(pod["metadata"]["name"], pod["status"]) for pod in api.get(PODS)["items"]]
    return (folder / "worker.log").read_text(errors="replace")[-4000:] + f"\n{pods}"
