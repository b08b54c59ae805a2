"""Trouble with Kubernetes, made on purpose on a real one: a namespace of its own for each test, and what happens to the pods in it."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.attempt import read_exit, read_heartbeats, read_spec
from cluster.epoch import newest_epoch, read_epoch
from cluster.job_view import JobView
from cluster.launchers.kubernetes import KubernetesLauncher
from cluster.launchers.kubernetes_api import Api, ApiRefusedError, connect
from schemas.attempt import ExitRecord
from schemas.cluster_config import ClusterConfig
from schemas.exit_code import ExitCode
from schemas.job import JobSpec
from tests.fakes.job_request import gang_request
from tests.fakes.kubernetes_job import lab_cluster
from tests.fakes.live_job import LiveJob, wait_until

PATIENCE_S = 300.0


class Place:
    """A namespace of the test cluster, and jobs in it."""

    def __init__(self, lab: Any, folder: Path) -> None:
        self.lab, self.folder, self.name = lab, folder, f"trouble-{secrets.token_hex(3)}"
        self.api = self.connect(str(lab.kubeconfig))
        self.api.call("POST", "/api/v1/namespaces", body={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}})
        wait_until(self._has_account)
        self._launchers: list[KubernetesLauncher] = []

    def connect(self, kubeconfig: str) -> Api:
        return connect(self.cluster(kubeconfig=kubeconfig))

    def cluster(self, **section: Any) -> ClusterConfig:
        return lab_cluster(self.folder, **section).model_copy(update={"namespace": self.name})

    def job(self, *, api: Api | None = None, cluster: ClusterConfig | None = None, **request: Any) -> LiveJob:
        """Returns a job of two nodes with a rank each, unless said otherwise."""
        options = {"steps": 60, **request.pop("options", {})}
        spec = gang_request(self.folder, **{"num_nodes": 2, "ranks": 1, "grace_s": 2.0, "lost_after_s": 60.0, **request, "options": options})
        return LiveJob(spec, launcher=self.launcher(api=api, cluster=cluster), patience_s=PATIENCE_S)

    def launcher(self, *, api: Api | None = None, cluster: ClusterConfig | None = None) -> KubernetesLauncher:
        self._launchers.append(KubernetesLauncher(cluster or self.cluster(), api=api or self.connect(str(self.lab.kubeconfig))))
        return self._launchers[-1]

    def objects(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api.call("GET", self.api.objects(kind))["items"]
        return found

    def pod(self, node_rank: int) -> dict[str, Any]:
        """Returns the pod of a node that has not ended."""
        return next(
            pod
            for pod in self.objects("pods")
            if pod["metadata"]["labels"]["headrace/node-rank"] == str(node_rank) and pod["status"]["phase"] in ("Pending", "Running")
        )

    def is_empty(self) -> bool:
        return self.objects("pods") == [] and self.objects("services") == []

    def limit(self, **hard: str) -> None:
        """Sets the namespace's quota."""
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "limit"}, "spec": {"hard": hard}}
        self.api.call("POST", self.api.objects("resourcequotas"), body=quota)
        wait_until(lambda: all("hard" in each["status"] for each in self.objects("resourcequotas")))

    def close(self) -> None:
        """Removes everything; the controllers must be there for it."""
        for launcher in self._launchers:
            launcher.close()
        for kind in ("services", "pods"):
            for each in self.objects(kind):
                with suppress(ApiRefusedError):
                    self.api.call("DELETE", self.api.objects(kind, each["metadata"]["name"]), body={"gracePeriodSeconds": 0})
        self.api.call("DELETE", f"/api/v1/namespaces/{self.name}")

    def _has_account(self) -> bool:
        return any(each["metadata"]["name"] == "default" for each in self.objects("serviceaccounts"))


@contextmanager
def place(lab: Any, folder: Path) -> Iterator[Place]:
    """A namespace, for as long as the body runs. What a test has switched off comes back."""
    found = Place(lab, folder)
    try:
        yield found
    finally:
        for name in (*lab.pids(),):
            lab.start(name)
        wait_until(lab.healthy)
        lab.wait_ready(*lab.nodes)
        found.close()


def works(view: JobView) -> bool:
    return view.committed_step >= 5


def starts(job: LiveJob) -> list[int]:
    """Returns the attempt of every start of ranks there ever was: what took effect."""
    newest = newest_epoch(job.storage, job.layout)
    return [read_epoch(job.storage, job.layout, number).attempt for number in range(newest + 1)]


def hosts(job: LiveJob, number: int) -> set[str]:
    """Returns the machines of an attempt."""
    return {beat.host for beat in read_heartbeats(job.storage, job.attempt(number))}


def record_of(job: LiveJob, number: int) -> ExitRecord:
    record = read_exit(job.storage, job.attempt(number))
    assert record is not None
    return record


def spec_of(job: LiveJob, number: int) -> JobSpec:
    return read_spec(job.storage, job.attempt(number))


def went_through(job: LiveJob, record: ExitRecord, here: Place, *, attempts: list[int]) -> None:
    """The job is done, these attempts took effect in this order, and nothing is left."""
    assert record.exit_code is ExitCode.DONE, record.message
    assert starts(job) == attempts, record.incidents
    wait_until(here.is_empty)
    wait_until(lambda: job.family() == [])
