"""The whole demo on a real Kubernetes control plane with three nodes on this machine; one of them is powered off in mid-training. Needs root.

    make k8s-demo          or          .venv/bin/python infra/kubernetes/demo.py [--steps 400] [--folder .headrace/k8s-demo] [--calm]

Training takes two pods. Kubernetes' programs are built the first time (README.md beside this file). The cluster lies below /tmp and is taken down at
the end, also after Ctrl-C; before that it is looked whether the namespace is empty, and then whether anything else is left. Artifacts, the
registered model and the curves stay in `--folder`.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import binaries
from lab.cluster import KubernetesTestCluster
from lab.errors import ClusterError

from flows.cluster_demo import demonstrate
from schemas.view import JobProgress

_CHECKOUT = Path(__file__).resolve().parents[2]
_NAMESPACE = "headrace-demo"
_KINDS = ("pods", "services", "configmaps")


def main() -> int:
    """Runs the demo and returns an exit code (`flows.cluster_demo.demonstrate`)."""
    return demonstrate(
        __doc__ or "",
        folder=_CHECKOUT / ".headrace/k8s-demo",
        start=_cluster,
        changes=_changes,
        variables=lambda cluster: {"KUBECONFIG": str(cluster.kubeconfig)},
        disturb=_power_off,
        work_left=_objects,
        refusal=ClusterError,
    )


@contextmanager
def _cluster(folder: Path) -> Iterator[KubernetesTestCluster]:
    cluster = KubernetesTestCluster(folder)
    try:
        binaries.build(say=lambda line: print(line, flush=True))
        cluster.up(nodes=3, owner=os.getpid())  # which may be killed, too
        cluster.api().post("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}})
        print(f"cluster: {len(cluster.nodes)} nodes; in another terminal: export KUBECONFIG={cluster.kubeconfig}; kubectl get pods -A", flush=True)
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder)


def _changes(folder: Path) -> dict[str, Any]:
    """What differs from the demo on one machine. Pods are this machine's files, and see the folder and the checkout where they are."""
    shared = [{"mount": str(path), "host_path": str(path)} for path in dict.fromkeys((folder, _CHECKOUT))]
    volumes = [volume for volume in shared if volume["mount"] == str(_CHECKOUT) or not folder.is_relative_to(_CHECKOUT)]
    unmeasured = {"name": "agent", "resources": {"requests": None}}  # this machine may have fewer cores than the nodes say
    return {
        "name": "k8s-demo",
        "cluster.kind": "kubernetes",
        "cluster.namespace": _NAMESPACE,
        "cluster.image": "host",
        "cluster.python": sys.executable,
        "cluster.ranks_per_node": 1,
        "cluster.stages": {"train": {"nodes": 2}},
        "cluster.kubernetes": {
            "volumes": volumes,
            "env": {"PYTHONPATH": str(_CHECKOUT)},
            "spread": "required",
            "pod_patch": {"spec": {"securityContext": {"runAsNonRoot": False}, "containers": [unmeasured]}},  # the folder is root's
        },
    }


def _power_off(cluster: KubernetesTestCluster, training: JobProgress) -> None:
    """Takes the machine of the first agent away, which leads the others and would have told how the job ended."""
    node = training.heartbeats[0].host
    cluster.kill(node)
    print(f"{node} is powered off at step {training.step}; Kubernetes believes it for some 16 s yet", flush=True)


def _objects(cluster: KubernetesTestCluster) -> list[str]:
    """Returns what is in the namespace, but for what Kubernetes itself puts into each."""
    found = (
        f"{kind[:-1]} {each['metadata']['name']}" for kind in _KINDS for each in cluster.api().get(f"/api/v1/namespaces/{_NAMESPACE}/{kind}")["items"]
    )
    return [each for each in found if each != "configmap kube-root-ca.crt"]


if __name__ == "__main__":
    raise SystemExit(main())
