"""A real API server takes the manifests as they are planned, and keeps every field: an old one drops what it does not know without a word."""

from typing import Any

import pytest
import yaml

from cluster.launchers.kubernetes import KubernetesLauncher
from cluster.launchers.kubernetes_api import Api, ApiRefusedError, connect
from schemas.cluster_config import ClusterConfig
from schemas.job import JobSpec
from tests.fakes.kubernetes_job import FULL, PLAIN, cluster_of, job_of
from tests.fakes.kubernetes_objects import losses

pytestmark = [pytest.mark.slow, pytest.mark.kubernetes]


@pytest.fixture
def api(kubernetes_nodes: Any) -> Api:
    """A connection to a cluster that has what the recipe names."""
    api = connect(cluster_of(PLAIN, namespace="training", kubernetes={"kubeconfig": str(kubernetes_nodes.kubeconfig)}))
    needed = {
        "/api/v1/namespaces": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "training"}},
        "/apis/scheduling.k8s.io/v1/priorityclasses": {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "training"},
            "value": 1000,
        },
        api.objects("serviceaccounts"): {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "headrace-ranks"}},
    }
    for path, manifest in needed.items():
        try:
            api.call("POST", path, body=manifest)
        except ApiRefusedError as error:
            if error.reason != "AlreadyExists":
                raise
    return api


@pytest.mark.parametrize(
    ("cluster", "spec"),
    [
        (cluster_of({**PLAIN, "namespace": "training"}, kubernetes={"service_account": "headrace-ranks"}), job_of()),
        (cluster_of(FULL), job_of(gpus_per_node=8, time_limit_s=86400.0, excluded_nodes=("a7.site",))),
    ],
    ids=["little", "all"],
)
def test_nothing_of_a_manifest_is_refused_or_lost(api: Api, cluster: ClusterConfig, spec: JobSpec) -> None:
    for manifest in yaml.safe_load_all(KubernetesLauncher(cluster).render(spec).text):
        kept = api.call("POST", api.objects(f"{manifest['kind'].lower()}s"), query={"dryRun": "All"}, body=manifest)
        assert list(losses(manifest, kept)) == []
