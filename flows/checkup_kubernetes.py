"""`headrace doctor` on a Kubernetes cluster: whether it answers, what this user may do there, and whether what the recipe names exists."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.launchers.kubernetes_api import Api, ApiRefusedError, ApiSilentError, connect
from cluster.launchers.kubernetes_request import request_problems
from flows.finding import Finding, finding
from schemas.cluster_config import ClusterConfig, ClusterKind
from schemas.config import RunConfig
from schemas.errors import HeadraceError, Problem
from schemas.kubernetes_config import PodConfig, QueueSystem
from schemas.stage import Stage
from tasks.planned_jobs import planned_jobs
from tasks.unshared import missed_by_pods

NEEDED: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("", "pods"): ("create", "get", "list", "watch", "delete", "deletecollection"),
    ("", "services"): ("create", "get", "delete"),
}
"""API group and resource → what the launcher does with it."""
_WITH_VOLCANO: Mapping[tuple[str, str], tuple[str, ...]] = {("scheduling.volcano.sh", "podgroups"): ("create", "get")}
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_ROLE = "docs/operations/kubernetes.md has the Role to bind"
_SHARED = frozenset({"ReadWriteMany", "ReadOnlyMany"})
_ABSENT = 404


def kubernetes_findings(config: RunConfig | None, *, project: Path, root: str, api: Api | None = None) -> list[Finding]:
    """Returns what a Kubernetes cluster means for a recipe, or for any.

    Args:
        config: the recipe; None: none.
        project: the project folder.
        root: the storage root.
        api: the connection; None: made as the recipe says.
    """
    cluster = config.cluster if config is not None else ClusterConfig(kind=ClusterKind.KUBERNETES)
    try:
        api = api or connect(cluster)
        answer = check_answer(api)
    except HeadraceError as error:
        return [finding("error", "kubernetes", error.what, error.mend or "correct cluster.kubernetes")]
    if answer["level"] == "error":
        return [answer]
    findings = [answer, *check_namespace(api), *check_rights(api, cluster)]
    if config is None:
        return findings
    pods: dict[Stage, PodConfig] = {stage: cluster.kubernetes.pods(stage) for stage in config.stages if stage is not Stage.REGISTER}
    findings += [*check_pods(config, project=project, root=root), *check_sharing(config, project=project, root=root)]
    findings += [*check_images(cluster, pods), *check_claims(api, cluster, pods)]
    return [*findings, *check_queues(api, cluster, pods), *check_names(api, pods)]


def check_answer(api: Api) -> Finding:
    """The API server and its version."""
    try:
        version = api.call("GET", "/version")
    except (ApiSilentError, ApiRefusedError) as error:
        return finding(
            "error", "kubernetes", f"{api.server} does not answer: {error}", "look at the network and at your login; kubectl version must work"
        )
    return finding("ok", "kubernetes", f"{version.get('gitVersion', 'unknown version')} at {api.server}")


def check_namespace(api: Api) -> list[Finding]:
    """Whether it exists, as far as this user may know."""
    found = _ask(api, f"/api/v1/namespaces/{api.namespace}")
    if isinstance(found, ApiRefusedError):
        if found.status == _ABSENT:
            return [
                finding(
                    "error", "namespace", f"{api.namespace} does not exist", f"kubectl create namespace {api.namespace}, or set cluster.namespace"
                )
            ]
        return [finding("ok", "namespace", f"{api.namespace}; this user may not look at it")]
    if found.get("status", {}).get("phase") == "Terminating":
        return [finding("error", "namespace", f"{api.namespace} is being removed", "wait until it is gone, and create it again")]
    return [finding("ok", "namespace", f"{api.namespace}")]


def check_rights(api: Api, cluster: ClusterConfig) -> list[Finding]:
    """Whether this user may do what the launcher does."""
    needed = {**NEEDED, **(_WITH_VOLCANO if cluster.kubernetes.queueing is QueueSystem.VOLCANO else {})}
    missing = []
    for (group, resource), verbs in needed.items():
        for verb in verbs:
            attributes = {"namespace": api.namespace, "verb": verb, "group": group, "resource": resource}
            review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}
            try:
                answer = api.call("POST", _REVIEWS, body=review)
            except (ApiRefusedError, ApiSilentError) as error:
                return [finding("warning", "rights", f"cannot be asked about: {error}", "kubectl auth can-i create pods must say yes")]
            if not answer.get("status", {}).get("allowed"):
                missing.append(f"{verb} {resource}")
    if missing:
        return [finding("error", "rights", f"this user may not {', '.join(missing)} in {api.namespace}", _ROLE)]
    count = sum(map(len, needed.values()))
    return [finding("ok", "rights", f"all {count} that jobs need: {', '.join(resource for _, resource in needed)}")]


def check_pods(config: RunConfig, *, project: Path, root: str) -> list[Finding]:
    """What no cluster would take."""
    problems: dict[Problem, None] = {}
    for spec in planned_jobs(config, storage_root=root, project_dir=project).values():
        problems |= dict.fromkeys(request_problems(spec, config.cluster))
    return [finding("error", problem.key, problem.message, f"nearest valid: {problem.nearest}" if problem.nearest else "") for problem in problems]


def check_sharing(config: RunConfig, *, project: Path, root: str) -> list[Finding]:
    """What pods probably lack, since they share no folder with this machine."""
    missed = missed_by_pods(config, storage_root=root, project_dir=project, stages=config.stages)
    return [finding("warning", each.subject, each.what, each.mend) for each in missed]


def check_images(cluster: ClusterConfig, pods: Mapping[Stage, PodConfig]) -> list[Finding]:
    """Whether every machine gets the same image."""
    found = []
    for image in dict.fromkeys(image for stage in pods if (image := cluster.resources(stage).image)):
        name = image.rpartition("/")[2]
        if "@" in image or (":" in name and not name.endswith(":latest")):
            found.append(finding("ok", "image", image))
        else:
            mend = "name a version that does not change (image:1.2), or a digest (image@sha256:…)"
            found.append(finding("warning", "image", f"{image}: what it means may differ between machines, and between attempts of one run", mend))
    return found


def check_claims(api: Api, cluster: ClusterConfig, pods: Mapping[Stage, PodConfig]) -> list[Finding]:
    """Whether volumes are there, and may be shared by the pods of a job."""
    wanted = {volume.claim: (volume, stage) for stage, config in pods.items() for volume in config.volumes if volume.claim is not None}
    found = []
    for claim, (volume, _) in wanted.items():
        told = _ask(api, api.objects("persistentvolumeclaims", claim))
        if isinstance(told, ApiRefusedError):
            found.append(_missing("claim", claim, told, mend=f"create the PersistentVolumeClaim in {api.namespace}"))
            continue
        phase, modes = told.get("status", {}).get("phase"), frozenset(told.get("spec", {}).get("accessModes", ()))
        if phase not in ("Bound", "Pending"):
            found.append(finding("error", "claim", f"{claim} is {phase}", f"kubectl describe pvc {claim}"))
        elif not modes & _SHARED and _has_several_nodes(cluster, pods, claim):
            mend = "a claim with ReadWriteMany (a parallel file system, NFS), or one node"
            found.append(finding("error", "claim", f"{claim} is {', '.join(sorted(modes))}: only one node can have it", mend))
        elif phase == "Pending":
            found.append(finding("warning", "claim", f"{claim} is not bound yet; some are only when a pod comes", f"kubectl describe pvc {claim}"))
        else:
            found.append(finding("ok", "claim", f"{claim} at {volume.mount}"))
    return found


def check_queues(api: Api, cluster: ClusterConfig, pods: Mapping[Stage, PodConfig]) -> list[Finding]:
    """Whether the queues are there."""
    found = []
    for queue in dict.fromkeys(queue for stage in pods if (queue := cluster.resources(stage).queue)):
        if cluster.kubernetes.queueing is QueueSystem.KUEUE:
            kind, path = "LocalQueue", api.objects("localqueues", queue, group="apis/kueue.x-k8s.io/v1beta1")
        else:
            kind, path = "Queue", f"/apis/scheduling.volcano.sh/v1beta1/queues/{queue}"
        told = _ask(api, path)
        if isinstance(told, ApiRefusedError):
            found.append(_missing("queue", f"{kind} {queue}", told, mend=f"correct cluster.queue, or install {cluster.kubernetes.queueing}"))
        else:
            found.append(finding("ok", "queue", f"{kind} {queue}"))
    return found


def check_names(api: Api, pods: Mapping[Stage, PodConfig]) -> list[Finding]:
    """Whether priority classes and service accounts are there. Secrets are not looked at: nobody should be able to."""
    return [*_named(api, pods.values())]


def _named(api: Api, pods: Iterable[PodConfig]) -> Iterator[Finding]:
    configs = list(pods)
    for name in dict.fromkeys(config.priority_class for config in configs if config.priority_class):
        told = _ask(api, f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}")
        if isinstance(told, ApiRefusedError) and told.status == _ABSENT:
            yield finding("error", "priority class", f"{name} does not exist", "kubectl get priorityclasses; cluster.kubernetes.priority_class")
    for name in dict.fromkeys(config.service_account for config in configs if config.service_account):
        told = _ask(api, api.objects("serviceaccounts", name))
        if isinstance(told, ApiRefusedError) and told.status == _ABSENT:
            yield finding("error", "service account", f"{name} does not exist in {api.namespace}", f"kubectl create serviceaccount {name}")


def _ask(api: Api, path: str) -> Any:
    """Returns an object, or how the server refuses to show it. One that falls silent now counts as one that may not be looked at."""
    try:
        return api.call("GET", path)
    except ApiRefusedError as error:
        return error
    except ApiSilentError as error:
        return ApiRefusedError(0, reason="", message=str(error), details={})


def _missing(subject: str, name: str, error: ApiRefusedError, *, mend: str) -> Finding:
    if error.status == _ABSENT:
        return finding("error", subject, f"{name} does not exist", mend)
    return finding("warning", subject, f"{name} cannot be looked at: {error}", "ask who administers the cluster whether it is there")


def _has_several_nodes(cluster: ClusterConfig, pods: Mapping[Stage, PodConfig], claim: str) -> bool:
    """Whether pods of one job, on several nodes, would share a claim."""
    return any((cluster.resources(stage).nodes or 1) > 1 for stage, config in pods.items() for volume in config.volumes if volume.claim == claim)
