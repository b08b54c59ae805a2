"""A job for Kubernetes and a cluster that has an opinion on everything, for tests."""

import sys
from pathlib import Path
from typing import Any

from cluster.environment import checkout
from schemas.cluster_config import ClusterConfig
from schemas.job import JobKind, JobSpec
from schemas.stage import Stage
from tests.fakes.job_request import LIMITS

KEY = "demo-7f3a-train-abc123"
PLAIN: dict[str, Any] = {
    "kind": "kubernetes",
    "image": "registry.example.com/headrace:1.2",
    "kubernetes": {"volumes": [{"mount": "/shared", "claim": "headrace"}]},
}
FULL: dict[str, Any] = {
    "kind": "kubernetes",
    "namespace": "training",
    "image": "registry.example.com/headrace:1.2",
    "queue": "gpu",
    "memory": "900G",
    "time_limit": "24h",
    "gpus_per_node": 8,
    "python": "/opt/venv/bin/python",
    "kubernetes": {
        "queueing": "kueue",
        "service_account": "headrace-ranks",
        "priority_class": "training",
        "node_selector": {"pool": "a100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "same_topology": "topology.kubernetes.io/zone",
        "spread": "required",
        "shm_size": "64G",
        "volumes": [
            {"mount": "/shared", "claim": "headrace"},
            {"mount": "/datasets", "host_path": "/mnt/datasets", "sub_path": "text", "read_only": True},
        ],
        "env": {"NCCL_SOCKET_IFNAME": "eth0", "ODD": "$(HOME)"},
        "secrets": ["headrace-storage"],
        "pull_secrets": ["registry"],
        "pull_policy": "IfNotPresent",
        "run_as_user": 1000,
        "run_as_group": 1000,
        "fs_group": 2000,
        "pod_patch": {
            "metadata": {"annotations": {"sidecar.istio.io/inject": "false"}},
            "spec": {
                "dnsPolicy": "ClusterFirst",
                "containers": [{"name": "agent", "env": [{"name": "EXTRA", "value": "1"}], "resources": {"limits": {"rdma/hca": "1"}}}],
            },
        },
    },
}


def lab_cluster(folder: Path, **section: Any) -> ClusterConfig:
    """Returns the test cluster as a recipe sees it: pods are this machine's files, and share a folder with it.

    The folder is root's, so pods are root, too, without any of its powers: everything else is as it ships.
    """
    without_requests = {"name": "agent", "resources": {"requests": None}}  # this machine has fewer cores than its nodes say
    return cluster_of(
        {
            "kind": "kubernetes",
            "image": "host",
            "python": sys.executable,
            "kubernetes": {
                "volumes": [{"mount": str(folder), "host_path": str(folder)}, {"mount": str(checkout()), "host_path": str(checkout())}],
                "env": {"PYTHONPATH": str(checkout())},
                "pod_patch": {"spec": {"securityContext": {"runAsNonRoot": False}, "containers": [without_requests]}},
            },
        },
        kubernetes=section,
    )


def cluster_of(values: dict[str, Any], **changes: Any) -> ClusterConfig:
    """Returns a cluster; `kubernetes` among the changes is merged into its section."""
    section = {**values.get("kubernetes", {}), **changes.pop("kubernetes", {})}
    return ClusterConfig.model_validate({**values, **changes, "kubernetes": section})


def job_of(**changes: Any) -> JobSpec:
    """Returns an attempt of a training on two nodes."""
    fields: dict[str, Any] = {
        "run_id": "demo-7f3a",
        "stage": Stage.TRAIN,
        "artifact_key": "train/demo-0123456789ab",
        "attempt": 3,
        "key": KEY,
        "kind": JobKind.GANG,
        "argv": ("-m", "tasks.train.job"),
        "num_nodes": 2,
        "ranks_per_node": 8,
        "threads_per_rank": 6,
        "limits": LIMITS,
        "storage_root": "/shared/data",
        "scratch_dir": f"/var/lib/headrace/state/scratch/{KEY}",
        "project_dir": "/home/me/project",
        "inputs": {},
        "config": {},
    }
    return JobSpec(**(fields | changes))
