"""The shipped deployment on a real Kubernetes cluster: a schedule runs the whole pipeline in pods, and who is killed on the way costs nothing."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cluster.attempt import read_exit
from cluster.layout import AttemptLayout
from cluster.storage import Storage, open_storage
from schemas.attempt import Cause
from schemas.journal import EventKind
from schemas.stage import Stage
from tasks.runs import Run, list_runs
from tests.fakes.kubernetes_deployment import JOBS, PODS, POOL, QUICK, deploy_flow, said, working
from tests.fakes.kubernetes_site import site_applied
from tests.fakes.mlflow_server import MlflowServer
from tests.fakes.prefect_lab import PrefectLab, prefect_serving, processes_of, wait_until
from tests.fakes.tiny_pipeline import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.kubernetes]

Json = dict[str, Any]
NAME = "scheduled"
SERVICES = "/api/v1/namespaces/headrace/services"
STAGE_PODS = "?labelSelector=app.kubernetes.io%2Fmanaged-by%3Dheadrace"
EVERY_S = 90
SMALL: Mapping[str, Any] = {
    "training.steps": 120,
    "training.schedule.decay_steps": 72,
    "training.schedule.warmup_steps": 12,
    "checkpoint.every_steps": 10,
    "tracking.validate_every_steps": 60,
    "evaluation.max_bytes": 20_000,
    "evaluation.max_new_tokens": 8,
    "tokenization.sequence_length": 128,
}
"""Of the demo's training, a tenth."""


@dataclass(frozen=True)
class Site:
    """A cluster with what a site applies to it, a Prefect server, and the volume that flows and stages share, as this machine sees it."""

    cluster: Any
    api: Any
    prefect: PrefectLab
    mlflow: MlflowServer
    folder: Path

    @property
    def volume(self) -> Path:
        return self.folder / "volume"

    @property
    def storage(self) -> Storage:
        return open_storage(str(self.volume / "data"))

    def working(self) -> Any:
        return working(self.prefect, self.cluster, self.folder)

    def said(self) -> str:
        begun = [pod["metadata"]["name"] for pod in self.pods(of_stages=False) if pod["status"]["phase"] != "Pending"]
        logs = [self.api.raw(f"{PODS}/{name}/log?tailLines=30") for name in begun]
        return said(self.folder, self.api) + "\n".join(logs)

    def pods(self, *, of_stages: bool) -> list[Json]:
        found: list[Json] = self.api.get(f"{PODS}{STAGE_PODS if of_stages else '?labelSelector=headrace%2Fpart%3Dflow'}")["items"]
        return found

    def runs(self, *, state: str, deployment: str) -> list[Json]:
        return self.prefect.flow_runs(deployment_id={"any_": [deployment]}, state={"type": {"any_": [state]}})

    def lives(self, flow_run: str) -> list[Json]:
        """The pods that a flow run has had so far."""
        return [pod for pod in self.pods(of_stages=False) if pod["metadata"]["labels"].get("prefect.io/flow-run-id") == flow_run]

    def job_of(self, flow_run: str) -> Json:
        """The one job of a flow run."""
        (job,) = [each for each in self.api.get(JOBS)["items"] if each["metadata"]["labels"]["prefect.io/flow-run-id"] == flow_run]
        return dict(job)

    def looked(self, deployment: str, *, done: str) -> list[str]:
        """What the other flow runs of a deployment said, newest first; nothing as long as the newest was skipped."""
        ended = sorted(self.runs(state="COMPLETED", deployment=deployment), key=lambda each: each["end_time"], reverse=True)
        said = [each["state"]["message"] for each in ended if each["id"] != done]
        return said if said and not said[0].startswith("skipped") else []

    def training_attempts(self, run: Run) -> list[AttemptLayout]:
        pointer = run.pointer(Stage.TRAIN)
        assert pointer is not None
        return [AttemptLayout(f"{pointer.key}/attempts/{name}") for name in self.storage.names(f"{pointer.key}/attempts")]

    def commits(self, run: Run) -> list[str]:
        pointer = run.pointer(Stage.TRAIN)
        return list(self.storage.names(f"{pointer.key}/commits")) if pointer is not None else []


@pytest.fixture(scope="module")
def site(kubernetes_nodes: Any, mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    for name in ("volume", "models", "prefect"):
        (folder / name).mkdir()
    claimed = {f"{folder.name}-models": ("models", "200Gi"), f"{folder.name}-storage": ("volume", "1Ti")}
    for name, (place, size) in claimed.items():  # of the sizes that the overlay claims
        kubernetes_nodes.add_volume(name, folder / place, size=size)
    try:
        with prefect_serving(folder / "prefect", env=QUICK) as prefect, site_applied(kubernetes_nodes) as api:
            yield Site(kubernetes_nodes, api, prefect, mlflow_server, folder)
    finally:
        for name in claimed:
            kubernetes_nodes.api().delete(f"/api/v1/persistentvolumes/{name}")


def shipped() -> Json:
    described = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    (deployment,) = [each for each in described if each["work_pool"]["name"] == POOL]
    return dict(deployment)


def overrides(given: list[str], site: Site, changes: Mapping[str, Any]) -> list[str]:
    """Returns the deployment's overrides with what a site changes in them, and what there is instead of images here."""
    values = dict(each.split("=", 1) for each in given)
    for name in ("run_as_user", "fs_group"):  # this machine's Python may be root's alone
        del values[f"cluster.kubernetes.{name}"]
    image = [{"mount": str(mount), "host_path": str(folder), "read_only": True} for mount, folder in image_folders().items()]
    volumes = [*yaml.safe_load(values["cluster.kubernetes.volumes"]), *image]
    here = {
        "name": NAME,
        "tracking.mlflow_uri": site.mlflow.uri,
        "cluster.image": "host",
        "cluster.python": sys.executable,
        "cluster.ranks_per_node": 1,
        "cluster.stages": {"train": {"nodes": 2}},
        "cluster.kubernetes.volumes": volumes,
        "cluster.kubernetes.env": {"PYTHONPATH": "/opt/headrace", "PYTHONDONTWRITEBYTECODE": "1"},
        "cluster.kubernetes.pod_patch": {"spec": {"securityContext": {"runAsNonRoot": False}}},
    }
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in {**values, **here, **SMALL, **changes}.items()]


def image_folders() -> dict[Path, Path]:
    """Where the images have Headrace and its Python, and what stands for them here."""
    return {Path("/opt/headrace"): ROOT, Path(sys.prefix): Path(sys.prefix)}


def deploy(site: Site, monkeypatch: pytest.MonkeyPatch, *, changes: Mapping[str, Any], **fields: Any) -> str:
    """Deploys what is shipped; returns the deployment's id."""
    for name, value in site.prefect.env.items():
        monkeypatch.setenv(name, value)
    given = shipped()
    image = {f"image-{number}": (mount, folder) for number, (mount, folder) in enumerate(image_folders().items())}
    claim = {"name": "storage", "persistentVolumeClaim": {"claimName": "headrace-storage"}}
    volumes = [{"name": name, "hostPath": {"path": str(folder)}} for name, (_, folder) in image.items()]
    mounts = [{"name": name, "mountPath": str(mount), "readOnly": True} for name, (mount, _) in image.items()]
    variables = {
        "image": "host",
        "command": f"{sys.executable} -m prefect flow-run execute",
        "env": {"PYTHONPATH": "/opt/headrace", "PYTHONDONTWRITEBYTECODE": "1", "PREFECT_HOME": "/tmp/prefect"},  # the worker's is on this machine
        "volumes": [{"name": "tmp", "emptyDir": {}}, claim, *volumes],
        "volume_mounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "storage", "mountPath": "/mnt/headrace"}, *mounts],
    }
    parameters = given["parameters"] | {"overrides": overrides(given["parameters"]["overrides"], site, changes), "on_change": "retrain"}
    deployment = {**given, "schedules": [], **fields, "parameters": parameters}
    return deploy_flow(site.prefect, deployment, file=site.folder / "prefect.yaml", variables=variables)


def begun(site: Site, number: int) -> Run:
    """Returns the run that makes so many, once it has committed something."""

    def found() -> Run | None:
        names = list_runs(site.storage)
        run = Run(site.storage, names[0]) if len(names) == number else None
        return run if run is not None and site.commits(run) else None

    run: Run = wait_until(found, what=site.said, timeout_s=400.0)
    return run


def test_a_schedule_trains_in_pods_and_a_killed_flow_is_replaced_by_one_that_adopts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=20 - EVERY_S)
    schedules = [{"interval": EVERY_S, "anchor_date": soon.isoformat(), "timezone": "UTC", "active": True}]
    deployment = deploy(site, monkeypatch, changes={}, schedules=schedules)
    with site.working():
        run = begun(site, 1)
        training = [pod for pod in site.pods(of_stages=True) if pod["metadata"]["labels"]["headrace/stage"] == "train"]
        assert [pod["spec"]["serviceAccountName"] for pod in training] == ["headrace-pods"] * 2
        (flow_run,) = [each for each in site.runs(state="RUNNING", deployment=deployment) if run.name in each["tags"]]
    for process in processes_of(flow_run["id"]):  # and no worker is there that could do anything about it
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended with the one before
            process.kill()
    wait_until(lambda: len(site.lives(flow_run["id"])) == 2, what=site.said)
    with site.working():
        done = site.prefect.wait_for(flow_run["id"], told=site.said, timeout_s=400.0)
        assert (done["state_type"], done["auto_scheduled"]) == ("COMPLETED", True), site.said()
        others = wait_until(lambda: site.looked(deployment, done=flow_run["id"]), what=site.said)
    site.prefect.prefect("--no-prompt", "deployment", "delete", f"pretrain/{shipped()['name']}")
    assert others[0].startswith("nothing to do")
    for each in others[1:]:  # most looked before the run was finished; one more may have looked after it
        assert each.startswith((f"skipped: {run.name} is ", "nothing to do")), others
    assert list_runs(site.storage) == (run.layout.run_id,)
    kinds = [event.kind for event in run.events()]
    assert (kinds.count(EventKind.RUN_STARTED), kinds.count(EventKind.RUN_RESUMED), kinds[-1]) == (1, 1, EventKind.RUN_FINISHED)
    assert len(site.training_attempts(run)) == 1, "adopted"
    assert tracked(site) == ["FINISHED"]
    wait_until(lambda: not (site.pods(of_stages=True) or site.api.get(SERVICES)["items"]), what=site.said)
    wait_until(lambda: "succeeded" in site.job_of(flow_run["id"])["status"], what=site.said)  # the flow says so before its pod has ended
    assert (site.job_of(flow_run["id"])["status"]["failed"], site.job_of(flow_run["id"])["status"]["succeeded"]) == (1, 1)
    assert "forbidden" not in (site.folder / "worker.log").read_text().lower()


def test_a_cancelled_flow_run_ends_its_training_and_leaves_no_pod(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = len(list_runs(site.storage))
    deployment = deploy(site, monkeypatch, changes={"training.seed": 7, "training.steps": 1200})
    with site.working():
        flow_run = site.prefect.post(f"deployments/{deployment}/create_flow_run", {})["id"]
        run = begun(site, earlier + 1)
        site.prefect.post(f"flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING"}})
        done = site.prefect.wait_for(flow_run, told=site.said)
        wait_until(lambda: not site.pods(of_stages=True) and not site.api.get(SERVICES)["items"], what=site.said)
    assert done["state_type"] == "CANCELLED"
    (attempt,) = site.training_attempts(run)
    record = read_exit(site.storage, attempt)
    assert record is not None
    assert record.cause is Cause.CANCELLED
    assert "RUNNING" not in tracked(site)


def tracked(site: Site) -> list[str]:
    """Returns how the runs of the pipeline ended, as MLflow has it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=site.mlflow.uri)
    experiment = client.get_experiment_by_name(NAME)
    assert experiment is not None
    return [str(run.info.status) for run in client.search_runs([experiment.experiment_id])]
