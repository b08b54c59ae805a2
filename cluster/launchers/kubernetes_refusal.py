"""What it means that Kubernetes refuses a job: the recipe is wrong, its user may not, or there is no room now. PURE but for one question."""

import re
from collections.abc import Callable, Iterable, Mapping

from cluster.launchers.kubernetes_api import ApiRefusedError
from cluster.launchers.protocol import NoRoomError
from schemas.cluster_config import ClusterConfig
from schemas.errors import ConfigError, Problem, UnreachableError
from schemas.suggestion import nearest_choice

_KEYS: Mapping[str, str] = {
    r"(cannot|not allowed to) \w+ resource": "cluster.namespace",
    r"serviceaccount": "cluster.kubernetes.service_account",
    r"PriorityClass": "cluster.kubernetes.priority_class",
    r"unknown field": "cluster.kubernetes.pod_patch",
    r"usage per (Pod|Container)": "cluster.memory",
    r"violates PodSecurity": "cluster.kubernetes",
    r"namespaces? \S+ (not found|because it is being terminated)": "cluster.namespace",
}
"""What Kubernetes says when it will not take such a job → the key of the recipe that it is about."""
_QUOTA = re.compile(r"exceeded quota: (?P<name>[^,]+), requested: (?P<requested>\S+), used: (?P<used>\S+), limited: (?P<limited>\S+)")
_OF_QUOTA: Mapping[str, str] = {"gpu": "cluster.gpus_per_node", "memory": "cluster.memory", "cpu": "cluster.ranks_per_node", "pods": "cluster.nodes"}
_FOR_GOOD = range(400, 500)
_CONFLICT = 409


def refusal(
    error: ApiRefusedError, *, key: str, num_pods: int, cluster: ClusterConfig, namespaces: Callable[[], Iterable[str]]
) -> ConfigError | UnreachableError:
    """Returns what a refusal means.

    Args:
        error: what the API server said.
        key: the attempt's.
        num_pods: pods of the job.
        cluster: what the recipe says.
        namespaces: those that this user may see; asked for when there is no such namespace.
    """
    if (quota := _QUOTA.search(error.message)) is not None:
        return _over_quota(quota, key=key, num_pods=num_pods)
    if error.status == _CONFLICT or error.status not in _FOR_GOOD:
        mend = "headrace resume submits it again, or adopts it if Kubernetes took it after all"
        return UnreachableError(f"Kubernetes did not take job {key}", why=error.message, mend=mend)
    causes = error.details.get("causes") or ()
    if error.reason == "Invalid" and causes:
        problems = (_problem(f"{cause.get('field')}: {cause.get('message')}", cluster, namespaces=namespaces) for cause in causes)
        return ConfigError(tuple(problems), source="Kubernetes refuses the job")
    return ConfigError((_problem(error.message, cluster, namespaces=namespaces),), source="Kubernetes refuses the job")


def _problem(said: str, cluster: ClusterConfig, *, namespaces: Callable[[], Iterable[str]]) -> Problem:
    where = next((key for words, key in _KEYS.items() if re.search(words, said)), "cluster.kubernetes")
    if where == "cluster.namespace":
        known = [] if "resource" in said else [name for name in namespaces() if name != cluster.namespace]
        nearest = nearest_choice(cluster.namespace, known) if cluster.namespace and known else ""
        return Problem(where, repr(cluster.namespace), said, nearest=nearest)
    name = where.rpartition(".")[2]
    holder = cluster.kubernetes if where.startswith("cluster.kubernetes.") else cluster
    value = repr(getattr(holder, name)) if name in type(holder).model_fields and name not in ("kubernetes", "pod_patch") else ""
    return Problem(where, value, said)


def _over_quota(quota: re.Match[str], *, key: str, num_pods: int) -> ConfigError | UnreachableError:
    """Returns whether a job that is over a quota may ever fit in it. Quotas count what others have, too: most refusals pass by themselves."""
    from kubernetes.utils.quantity import parse_quantity

    requested, limited = _amounts(quota["requested"]), _amounts(quota["limited"])
    too_much = [what for what, amount in requested.items() if what in limited and num_pods * parse_quantity(amount) > parse_quantity(limited[what])]
    if too_much:
        problems = (
            Problem(
                next((name for word, name in _OF_QUOTA.items() if word in what), "cluster"),
                f"{requested[what]} {what} on each of {num_pods}",
                f"more than quota {quota['name']} of the namespace allows at all",
                nearest=limited[what],
            )
            for what in too_much
        )
        return ConfigError(tuple(problems), source="Kubernetes refuses the job")
    why = f"quota {quota['name']} of the namespace: {quota['used']} of {quota['limited']} are in use, {quota['requested']} is asked for"
    return NoRoomError(f"there is no room for job {key} now", why=why, mend="wait, ask for less in cluster, or have the quota raised")


def _amounts(text: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name: amount for name, _, amount in pairs}
