"""What no cluster could make of a recipe's pods, found before anything is submitted. PURE."""

from cluster.launchers.kubernetes_manifest import is_mounted, size_bytes, state_dir
from cluster.launchers.kubernetes_patch import patch_problems
from schemas.cluster_config import ClusterConfig
from schemas.errors import Problem
from schemas.job import JobSpec
from schemas.kubernetes_config import PodConfig

_LEADING_TO_CREDENTIALS = ("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ROLE", "AWS_WEB_IDENTITY", "AWS_CONTAINER")
"""Variables by which the standard chain finds some; none of them is secret."""


def request_problems(spec: JobSpec, cluster: ClusterConfig) -> list[Problem]:
    """Returns everything that is wrong with a job's pods, whatever the cluster has."""
    pods, stage = cluster.kubernetes.pods(spec.stage), spec.stage
    problems = []
    if not cluster.resources(stage).image:
        problems.append(Problem("cluster.image", "", "is missing: pods run an image, of which stages may have their own (cluster.stages)"))
    if "://" not in spec.storage_root and not is_mounted(spec.storage_root, pods):
        message = "is no folder that pods see: mount a volume at or above it (cluster.kubernetes.volumes), or use s3://"
        problems.append(Problem("storage.root", repr(spec.storage_root), message))
    problems += _scratch_problems(spec, pods)
    if pods.pod_patch:
        own = cluster.kubernetes.stages.get(stage)
        is_own = own is not None and "pod_patch" in own.model_fields_set
        key = f"cluster.kubernetes.stages.{stage.value}.pod_patch" if is_own else "cluster.kubernetes.pod_patch"
        problems += patch_problems(pods.pod_patch, key=key)
    return problems


def has_credentials(pods: PodConfig) -> bool:
    """Whether a recipe says where agents get credentials for object storage from: a Secret, an account with a role, or its own way by a patch."""
    spec = pods.pod_patch.get("spec", {})
    by_patch = any(container.get("env") or container.get("envFrom") for container in spec.get("containers", ())) or "serviceAccountName" in spec
    by_name = any(name.startswith(_LEADING_TO_CREDENTIALS) for name in pods.env)
    return bool(pods.secrets or pods.service_account) or by_name or by_patch


def _scratch_problems(spec: JobSpec, pods: PodConfig) -> list[Problem]:
    """Returns what is wrong with `scratch_size`."""
    key, size, state = "cluster.kubernetes.scratch_size", pods.scratch_size, str(state_dir(spec))
    if size is None:
        return []
    if is_mounted(state, pods):
        return [Problem(key, repr(size), f"has no effect: state ({state}) lies on a volume of its own")]
    if "://" in spec.storage_root and spec.cache_bytes >= size_bytes(size):
        message = (
            f"has no room for copies of object storage ({spec.cache_bytes:,} bytes), and logs beside them: raise it, or lower cluster.cache_bytes"
        )
        return [Problem(key, repr(size), message)]
    return []
