"""The objects of a Kubernetes job. PURE: a job spec and what the recipe asks for in, manifests out.

One pod per node runs one agent; ranks are the agent's business, not Kubernetes'. A headless Service owns the pods: it names them, and when it is
deleted they go with it. Nothing in a manifest is secret: whoever may look at pods may read it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from cluster.environment import NODE_NAME
from cluster.launchers.kubernetes_name import (
    ATTEMPT,
    JOB,
    KEY,
    MANAGED_BY,
    MANAGER,
    NODE_RANK,
    NUM_NODES,
    RUN,
    STAGE,
    job_name,
    label_value,
    pod_name,
)
from cluster.launchers.kubernetes_patch import AGENT, merged
from cluster.launchers.protocol import AGENT_MODULE
from cluster.layout import ArtifactLayout
from schemas.cluster_config import ClusterConfig
from schemas.job import JobSpec
from schemas.kubernetes_config import PodConfig, QueueSystem, Spread, Toleration

PYTHON = "python3"
"""The image's, where the recipe names none."""
LAST_WORDS_S = 30.0
"""What an agent may take, once its ranks have ended, to publish their last lines and its exit record."""
_HOST = "kubernetes.io/hostname"
_LOST = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
"""Taints of machines that have fallen silent."""
_NONE: Mapping[str, Any] = {}

Manifest = dict[str, Any]


def manifests(spec: JobSpec, cluster: ClusterConfig) -> tuple[Manifest, ...]:
    """Returns what is created for a job, in this order: the Service, which owns the rest, what a queue wants, and the pods, the first one last.

    An agent of the first node claims the attempt, so nothing has begun while its pod is missing: whoever died on the way can be continued.
    """
    pods = tuple(_pod(spec, cluster, node_rank=rank) for rank in reversed(range(spec.num_nodes)))
    group = (_volcano_group(spec, cluster),) if cluster.kubernetes.queueing is QueueSystem.VOLCANO and _queue(spec, cluster) else ()
    return (_service(spec, cluster), *group, *pods)


def owned(manifest: Mapping[str, Any], *, owner: Mapping[str, Any]) -> Manifest:
    """Returns a manifest as it is submitted: as part of its owner, whose identity is only known once it is there.

    The owner's uid also tells agents which others belong to them: pods of one owner are one submission.

    Args:
        manifest: of anything but the Service.
        owner: the Service, as Kubernetes returned it.
    """
    name, uid = owner["metadata"]["name"], owner["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "Service", "name": name, "uid": uid, "controller": True, "blockOwnerDeletion": True}
    result = merged(manifest, {"metadata": {"ownerReferences": [reference]}})
    if manifest["kind"] == "Pod":
        containers = [
            {**container, "command": [*container["command"], "--submission", uid]} if container["name"] == AGENT else container
            for container in manifest["spec"]["containers"]
        ]
        result["spec"] = {**manifest["spec"], "containers": containers}
    return result


def binary_size(size: str) -> str:
    """Returns `64G`, of 2³⁰ bytes each as on every cluster, in Kubernetes' way; a bare number is MiB."""
    return f"{size}i" if size[-1] in "KMGT" else f"{size}Mi"


def size_bytes(size: str) -> int:
    """Returns what `binary_size` means, in bytes."""
    number, unit = size.rstrip("KMGT"), size[-1]
    return int(number) << 10 * (1 + "KMGT".find(unit) if unit in "KMGT" else 2)


def ranks_grace_s(spec: JobSpec) -> int:
    """Returns how long ranks may take for their last checkpoint: as the recipe says, or longer where it was measured that they need it."""
    return math.ceil(max(spec.grace_s, spec.measured_stop_s))


def grace_s(spec: JobSpec) -> int:
    """Returns how long Kubernetes must wait between SIGTERM and SIGKILL: for the ranks, and then for the agent's last words."""
    return math.ceil(ranks_grace_s(spec) + LAST_WORDS_S)


def _service(spec: JobSpec, cluster: ClusterConfig) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(spec, cluster, name=job_name(spec.key)),
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {JOB: job_name(spec.key)}},
    }


def _volcano_group(spec: JobSpec, cluster: ClusterConfig) -> Manifest:
    return {
        "apiVersion": "scheduling.volcano.sh/v1beta1",
        "kind": "PodGroup",
        "metadata": _metadata(spec, cluster, name=job_name(spec.key)),
        "spec": {"minMember": spec.num_nodes, "queue": _queue(spec, cluster)},
    }


def _pod(spec: JobSpec, cluster: ClusterConfig, *, node_rank: int) -> Manifest:
    config, name = cluster.kubernetes.pods(spec.stage), pod_name(spec.key, node_rank)
    metadata = _metadata(spec, cluster, name=name)
    metadata["labels"] |= {NODE_RANK: str(node_rank), **_kueue_labels(spec, cluster)}
    metadata["annotations"] |= {NUM_NODES: str(spec.num_nodes), **_queue_annotations(spec, cluster)}
    volumes, mounts = _volumes(spec, config)
    pod_spec: Manifest = {
        "restartPolicy": "Never",
        "hostname": name,
        "subdomain": job_name(spec.key),
        "terminationGracePeriodSeconds": grace_s(spec),
        **({"activeDeadlineSeconds": math.ceil(spec.time_limit_s) + grace_s(spec)} if spec.time_limit_s is not None else _NONE),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "shareProcessNamespace": True,  # what ranks leave behind is reaped, and SIGTERM ends an agent that does not listen yet
        **_given(serviceAccountName=config.service_account, priorityClassName=config.priority_class, nodeSelector=dict(config.node_selector)),
        **_given(imagePullSecrets=[{"name": secret} for secret in config.pull_secrets]),
        **({"schedulerName": "volcano"} if cluster.kubernetes.queueing is QueueSystem.VOLCANO and _queue(spec, cluster) else _NONE),
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            **_given(runAsUser=config.run_as_user, runAsGroup=config.run_as_group),
            **({"fsGroup": config.fs_group, "fsGroupChangePolicy": "OnRootMismatch"} if config.fs_group is not None else _NONE),
        },
        "tolerations": _tolerations(spec, config),
        **_placement(spec, config),
        "containers": [_container(spec, cluster, config, node_rank=node_rank, mounts=mounts)],
        "volumes": volumes,
    }
    return merged({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec}, config.pod_patch)


def _metadata(spec: JobSpec, cluster: ClusterConfig, *, name: str) -> Manifest:
    labels = {
        "app.kubernetes.io/name": "headrace",
        MANAGED_BY: MANAGER,
        JOB: job_name(spec.key),
        RUN: label_value(spec.run_id),
        STAGE: spec.stage.value,
        ATTEMPT: str(spec.attempt),
    }
    return {"name": name, **_given(namespace=cluster.namespace), "labels": labels, "annotations": {KEY: spec.key}}


def _container(spec: JobSpec, cluster: ClusterConfig, config: PodConfig, *, node_rank: int, mounts: Sequence[Manifest]) -> Manifest:
    resources = cluster.resources(spec.stage)
    fixed = _given(memory=binary_size(resources.memory) if resources.memory else None)
    fixed |= {config.gpu_resource: str(spec.gpus_per_node)} if spec.gpus_per_node else {}
    # The agent itself takes next to nothing; a limit on CPU would only halt ranks that make up for lost time.
    requests = {"cpu": str(spec.ranks_per_node * spec.threads_per_rank), **fixed}
    requests |= {"ephemeral-storage": binary_size(config.scratch_size)} if config.scratch_size else {}
    own = [{"name": "HOME", "value": "/tmp"}, _from_field("HEADRACE_POD_IP", "status.podIP"), _from_field(NODE_NAME, "spec.nodeName")]  # noqa: S108
    return {
        "name": AGENT,
        "image": resources.image,
        **_given(imagePullPolicy=config.pull_policy.value if config.pull_policy is not None else None),
        "command": [*_agent(spec, python=resources.python or PYTHON), "--node-rank", str(node_rank), "--advertise", "$(HEADRACE_POD_IP)"],
        "workingDir": spec.project_dir,
        "env": [
            *(entry for entry in own if entry["name"] not in config.env),
            *({"name": key, "value": _literal(value)} for key, value in config.env.items()),
        ],
        **_given(envFrom=[{"secretRef": {"name": secret}} for secret in config.secrets]),
        "resources": {"requests": requests, **_given(limits=fixed)},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": list(mounts),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _agent(spec: JobSpec, *, python: str) -> list[str]:
    """Returns the command of an agent, as far as it is the same on all nodes. Kubernetes would replace `$(NAME)`."""
    attempt = ArtifactLayout(spec.artifact_key).attempt(spec.step_name, spec.attempt)
    arguments = {"--storage": spec.storage_root, "--attempt": attempt.key, "--key": spec.key, "--grace": str(ranks_grace_s(spec))}
    words = (python, "-P", "-m", AGENT_MODULE, *(word for pair in arguments.items() for word in pair), "--gather", "--log")
    return [_literal(word) for word in words]


def _volumes(spec: JobSpec, config: PodConfig) -> tuple[list[Manifest], list[Manifest]]:
    """Returns volumes and where the container sees them: the recipe's, and folders of the pod's own where the root is read-only."""
    volumes: list[Manifest] = []
    mounts: list[Manifest] = []
    for index, volume in enumerate(config.volumes):
        source = {"persistentVolumeClaim": {"claimName": volume.claim}} if volume.claim else {"hostPath": {"path": volume.host_path}}
        volumes.append({"name": f"volume-{index}", **source})
        options = _given(subPath=volume.sub_path) | ({"readOnly": True} if volume.read_only else {})
        mounts.append({"name": f"volume-{index}", "mountPath": volume.mount, **options})
    shm = {"medium": "Memory", **_given(sizeLimit=binary_size(config.shm_size) if config.shm_size else None)}
    state = _given(sizeLimit=binary_size(config.scratch_size) if config.scratch_size else None)
    own = {"/dev/shm": ("shm", shm), "/tmp": ("tmp", {}), str(state_dir(spec)): ("state", state)}  # noqa: S108
    for path, (name, empty) in own.items():
        if not is_mounted(path, config):
            volumes.append({"name": name, "emptyDir": empty})
            mounts.append({"name": name, "mountPath": path})
    return volumes, mounts


def is_mounted(path: str, config: PodConfig) -> bool:
    """Whether a path lies on a volume of the recipe's."""
    return any(PurePosixPath(path).is_relative_to(volume.mount) for volume in config.volumes)


def state_dir(spec: JobSpec) -> PurePosixPath:
    """Returns the folder below which a node keeps its logs, sockets and copies: `{state}/scratch`."""
    return PurePosixPath(spec.scratch_dir).parent


def _tolerations(spec: JobSpec, config: PodConfig) -> list[Manifest]:
    """Returns the recipe's, and how long a pod stays with a machine that has fallen silent: no longer than its run would wait for it."""
    keys = {toleration.key for toleration in config.tolerations}
    lost = [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": math.ceil(spec.lost_after_s)}
        for taint in _LOST
        if taint not in keys
    ]
    return [*(_toleration(toleration) for toleration in config.tolerations), *lost]


def _toleration(toleration: Toleration) -> Manifest:
    effect = toleration.effect.value if toleration.effect is not None else None
    given = _given(key=toleration.key, value=toleration.value, effect=effect, tolerationSeconds=toleration.toleration_s)
    return {"operator": toleration.operator.value, **given}


def _placement(spec: JobSpec, config: PodConfig) -> Manifest:
    """Returns where the pods of a job go: not to nodes that are better avoided, apart from each other, and together in one place."""
    selector, affinity = {"matchLabels": {JOB: job_name(spec.key)}}, dict[str, Any]()
    if spec.excluded_nodes:  # a field selector takes one value
        avoided = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in spec.excluded_nodes]
        terms = {"nodeSelectorTerms": [{"matchFields": avoided}]}
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    if spec.num_nodes > 1 and config.same_topology is not None:
        term = {"labelSelector": selector, "topologyKey": config.same_topology}
        affinity["podAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    if spec.num_nodes > 1 and config.spread is Spread.REQUIRED:
        affinity["podAntiAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": selector, "topologyKey": _HOST}]}
    constraint = {"maxSkew": 1, "topologyKey": _HOST, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}
    spread = [constraint] if spec.num_nodes > 1 and config.spread is Spread.PREFERRED else None
    return _given(affinity=affinity, topologySpreadConstraints=spread)


def _queue(spec: JobSpec, cluster: ClusterConfig) -> str | None:
    return cluster.resources(spec.stage).queue


def _kueue_labels(spec: JobSpec, cluster: ClusterConfig) -> dict[str, str]:
    queue = _queue(spec, cluster)
    if cluster.kubernetes.queueing is not QueueSystem.KUEUE or queue is None:
        return {}
    group = {"kueue.x-k8s.io/pod-group-name": job_name(spec.key)} if spec.num_nodes > 1 else {}
    return {"kueue.x-k8s.io/queue-name": queue, **group}


def _queue_annotations(spec: JobSpec, cluster: ClusterConfig) -> dict[str, str]:
    if _queue(spec, cluster) is None or cluster.kubernetes.queueing is None:
        return {}
    if cluster.kubernetes.queueing is QueueSystem.VOLCANO:
        return {"scheduling.k8s.io/group-name": job_name(spec.key)}
    alone = spec.num_nodes == 1  # a pod of a group is not replaced: the next attempt has a group of its own
    return {} if alone else {"kueue.x-k8s.io/pod-group-total-count": str(spec.num_nodes), "kueue.x-k8s.io/retriable-in-group": "false"}


def _from_field(name: str, path: str) -> Manifest:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _literal(word: str) -> str:
    """Returns a word as Kubernetes leaves it alone."""
    return word.replace("$(", "$$(")


def _given(**values: Any) -> Manifest:
    """Returns those that have a value."""
    return {name: value for name, value in values.items() if value not in (None, (), [], {}, "")}
