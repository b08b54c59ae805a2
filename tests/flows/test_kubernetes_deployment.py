"""Deployments on a real Kubernetes cluster: Prefect's own worker, with no more rights than it has at a site, makes Jobs by our template."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.deployment import deploy_all
from tests.fakes.kubernetes_deployment import JOBS, PODS, POOL, QUICK, deploy_flow, said, working
from tests.fakes.kubernetes_site import host_folders, site_applied
from tests.fakes.prefect_lab import PrefectLab, prefect_serving, wait_until
from tests.fakes.tiny_pipeline import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.kubernetes]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectLab]:
    with prefect_serving(tmp_path_factory.mktemp("prefect"), env=QUICK) as server:
        yield server


@pytest.fixture(scope="module")
def api(kubernetes_nodes: Any) -> Iterator[Any]:
    with site_applied(kubernetes_nodes) as administrator:
        yield administrator


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where flows write, whichever machine they are on."""
    made = tmp_path / "flows"
    made.mkdir()
    return made


def deploy(lab: PrefectLab, folder: Path, *, monkeypatch: pytest.MonkeyPatch, sleep_s: float) -> str:
    """Deploys the flow that sleeps; returns the deployment's id."""
    volumes, mounts = host_folders(folder)
    variables = {
        "image": "host",
        "command": f"{sys.executable} -m prefect flow-run execute",
        "env": {"PYTHONPATH": str(ROOT)},
        "finished_job_ttl": 2,
        "memory": "1Gi",
        "volumes": [{"name": "tmp", "emptyDir": {}}, *volumes],
        "volume_mounts": [{"name": "tmp", "mountPath": "/tmp"}, *mounts],
    }
    deployment = {
        "name": folder.parent.name,
        "entrypoint": "tests/fakes/sleeping_flow.py:sleeping",
        "parameters": {"folder": str(folder), "sleep_s": sleep_s},
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
    }
    for name, value in lab.env.items():
        monkeypatch.setenv(name, value)
    return deploy_flow(lab, deployment, file=folder.parent / "prefect.yaml", variables=variables)


def test_a_flow_run_becomes_a_job_and_the_job_goes(
    lab: PrefectLab, kubernetes_nodes: Any, api: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = deploy(lab, folder, monkeypatch=monkeypatch, sleep_s=0.0)
    pool = lab.get(f"work_pools/{POOL}")
    assert pool["type"] == "kubernetes"
    assert pool["base_job_template"]["variables"]["properties"]["service_account_name"]["default"] == "headrace-flow"
    with working(lab, kubernetes_nodes, folder.parent):
        flow_run = lab.post(f"deployments/{deployment}/create_flow_run", {})["id"]
        (job,) = wait_until(lambda: api.get(JOBS)["items"], what=lambda: said(folder.parent, api))
        assert job["metadata"]["labels"]["prefect.io/flow-run-id"] == flow_run
        assert job["spec"]["template"]["spec"]["serviceAccountName"] == "headrace-flow"
        done = lab.wait_for(flow_run, told=lambda: said(folder.parent, api))
        wait_until(lambda: not api.get(JOBS)["items"] and not api.get(PODS)["items"], what=lambda: said(folder.parent, api))
    assert done["state_type"] == "COMPLETED"
    assert done["infrastructure_pid"] == f"headrace:{job['metadata']['name']}"
    assert len((folder / "lives").read_text().splitlines()) == 1
    assert "forbidden" not in (folder.parent / "worker.log").read_text().lower(), "its rights suffice, for what it watches too"


def test_a_cancelled_flow_run_takes_its_job_along(
    lab: PrefectLab, kubernetes_nodes: Any, api: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = deploy(lab, folder, monkeypatch=monkeypatch, sleep_s=600.0)
    with working(lab, kubernetes_nodes, folder.parent):
        flow_run = lab.post(f"deployments/{deployment}/create_flow_run", {})["id"]
        wait_until((folder / "lives").exists, what=lambda: said(folder.parent, api))
        lab.post(f"flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING"}})
        done = lab.wait_for(flow_run, "CANCELLED", told=lambda: said(folder.parent, api))
        wait_until(lambda: not api.get(JOBS)["items"] and not api.get(PODS)["items"], what=lambda: said(folder.parent, api))
    assert done["state_type"] == "CANCELLED"


def test_a_second_deploy_hands_the_template_over_again(lab: PrefectLab, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy(lab, folder, monkeypatch=monkeypatch, sleep_s=0.0)
    changed = folder.parent / "template.yaml"
    template = lab.get(f"work_pools/{POOL}")["base_job_template"]
    template["variables"]["properties"]["memory"]["default"] = "9Gi"
    changed.write_text(yaml.safe_dump(template))
    deploy_all(pool=POOL, file=folder.parent / "prefect.yaml")
    assert lab.get(f"work_pools/{POOL}")["base_job_template"] == template
