"""What pods mean: of each whether it waits, runs or is over, and why; of all pods of an attempt, what a launcher reports. PURE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.launchers.kubernetes_name import KEY, NODE_RANK, NUM_NODES
from cluster.launchers.protocol import JobReport, JobState
from schemas.attempt import Cause

_DISRUPTIONS: Mapping[str, Cause] = {
    "PreemptionByScheduler": Cause.PREEMPTION,
    "EvictionByEvictionAPI": Cause.PREEMPTION,
    "TerminationByKubelet": Cause.PREEMPTION,
    "DeletionByTaintManager": Cause.NODE,
    "DeletionByPodGC": Cause.NODE,
    "WorkloadEvictedDueToPreempted": Cause.PREEMPTION,
    "StoppedByKueue": Cause.PREEMPTION,
}
"""Reasons of the condition DisruptionTarget, and of Kueue's TerminationTarget."""
_REASONS: Mapping[str, Cause] = {
    "Evicted": Cause.PREEMPTION,
    "Preempting": Cause.PREEMPTION,
    "Preempted": Cause.PREEMPTION,
    "Shutdown": Cause.PREEMPTION,
    "NodeShutdown": Cause.PREEMPTION,
    "Terminated": Cause.PREEMPTION,
    "NodeLost": Cause.NODE,
    "NodeAffinity": Cause.NODE,
    "UnexpectedAdmissionError": Cause.NODE,
    "DeadlineExceeded": Cause.TIME_LIMIT,
    "OOMKilled": Cause.OUT_OF_MEMORY,
    "ContainerStatusUnknown": Cause.NODE,
}
"""Reasons of a pod that has failed, or of its container."""
_NEVER = frozenset({"InvalidImageName", "ErrImageNeverPull"})
"""Reasons to wait that no waiting mends."""
_WORDS: Mapping[str, str] = {
    "ErrImagePull": "its image cannot be fetched",
    "ImagePullBackOff": "its image cannot be fetched",
    "InvalidImageName": "the name of its image makes no sense",
    "ErrImageNeverPull": "its image is not on the machine, and is not to be fetched",
    "CreateContainerConfigError": "its container cannot be configured",
    "CreateContainerError": "its container cannot be created",
    "RunContainerError": "its container cannot be started",
    "ContainerCreating": "its container is being created",
    "PodInitializing": "it is being initialized",
    "Unschedulable": "no machine fits",
    "SchedulingGated": "its queue has not admitted it",
    "SchedulerError": "the scheduler failed",
}
_FIRST = (Cause.NODE, Cause.OUT_OF_MEMORY, Cause.TIME_LIMIT, Cause.PREEMPTION)
"""Of several causes the one that explains the others."""
_KUBELET_SAYS_SO = frozenset({"ContainersNotReady", "ContainersNotInitialized", "PodCompleted", "PodFailed", "ReadinessGatesNotReady"})

_ERROR = " ERROR "
"""What a line of an agent's log has that tells an error: `2026-01-01 00:00:00,000 ERROR cluster.agent.agent: …`."""
_MOST_LAST_WORDS = 400


@dataclass(frozen=True)
class Pod:
    """A pod of ours, as last seen."""

    name: str
    key: str
    """The attempt's."""
    node_rank: int
    num_nodes: int
    """Pods of its attempt."""
    state: JobState
    """Pending, running or ended."""
    reason: str = ""
    """Why it waits, or how it ended, for people."""
    machine: str = ""
    """Where it runs, or ran."""
    cause: Cause | None = None
    """Why it ended; None: Kubernetes does not say."""
    failed: bool = False
    """Whether it ended, and not by itself with success."""
    silent: bool = False
    """Whether its machine has fallen silent: nobody can tell whether it still runs."""
    held: bool = False
    """Whether it waits for something else than machines."""


def pod_of(manifest: Mapping[str, Any]) -> Pod | None:
    """Returns what a pod means; None: it is none of ours."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
    if KEY not in annotations or not str(labels.get(NODE_RANK, "")).isdigit() or not str(annotations.get(NUM_NODES, "")).isdigit():
        return None
    pod = Pod(
        name=metadata["name"],
        key=annotations[KEY],
        node_rank=int(labels[NODE_RANK]),
        num_nodes=int(annotations[NUM_NODES]),
        state=JobState.RUNNING,
        machine=manifest.get("spec", {}).get("nodeName") or "",
    )
    cause, why = _end(status)
    phase, is_leaving = status.get("phase", "Pending"), "deletionTimestamp" in metadata
    if phase in ("Succeeded", "Failed"):
        return replace(pod, state=JobState.ENDED, reason=why, cause=cause, failed=phase == "Failed")
    if _machine_is_silent(status) or status.get("reason") == "NodeLost":  # one that is to go as well is given up: who would tell when it is gone?
        pod = replace(pod, silent=True, reason=f"machine {pod.machine} is silent")
        return replace(pod, state=JobState.ENDED, cause=Cause.NODE, failed=True) if is_leaving else pod
    if phase == "Pending":
        word, reason = _waits_for(status)
        if word in _NEVER:
            return replace(pod, state=JobState.ENDED, reason=reason, cause=Cause.USER_CODE, failed=True)
        return replace(
            pod,
            state=JobState.PENDING,
            reason="it is being removed" if is_leaving else reason,
            cause=cause,
            held=word in _WORDS and pod.machine != "",
        )
    return replace(pod, reason="it is asked to end" if is_leaving else "", cause=cause)


def removed(pod: Pod) -> Pod:
    """Returns a pod that is not there any more, as it was last seen."""
    if pod.state is JobState.ENDED:
        return pod
    return replace(pod, state=JobState.ENDED, reason=f"removed{f' ({pod.cause.value})' if pod.cause is not None else ''}", failed=True)


def report_of(pods: Sequence[Pod]) -> JobReport:
    """Returns what a launcher reports of an attempt, from all pods of it that are known, removed ones among them."""
    if not pods:
        return JobReport(JobState.ABSENT)
    pods = sorted(pods, key=lambda pod: pod.node_rank)
    by_state = {state: [pod for pod in pods if pod.state is state] for state in (JobState.PENDING, JobState.RUNNING, JobState.ENDED)}
    pending, running, ended = by_state.values()
    nodes, num_nodes = ",".join(dict.fromkeys(pod.machine for pod in pods if pod.machine)), pods[0].num_nodes
    if not pending and not running:
        causes = {pod.cause for pod in ended}
        cause = next((cause for cause in _FIRST if cause in causes), next((pod.cause for pod in ended if pod.cause is not None), None))
        first = next((pod for pod in ended if pod.cause is cause and pod.failed), next((pod for pod in ended if pod.failed), ended[0]))
        told = _told("Failed" if first.failed else "Succeeded", f"{first.name}: {first.reason}" if first.reason else "")
        return JobReport(JobState.ENDED, told=told, nodes=nodes, cause=cause)
    if pods[0].node_rank != 0:  # the first one is created last: somebody died on the way, and nothing has begun
        return JobReport(JobState.ABSENT, told=f"incomplete: {len(pods)} of {num_nodes} pods", nodes=nodes)
    broken = next((f"{pod.name}: {pod.reason or 'failed'}" for pod in pods if pod.failed or pod.silent), "")
    if pending or len(pods) < num_nodes:
        some = f"{len(running)} of {num_nodes} pods run" if num_nodes > 1 else ""
        waits = next((f"{pod.name}: {pod.reason}" for pod in pending if pod.reason), "")
        held = all(pod.held for pod in pending)
        return JobReport(JobState.PENDING, told=_told("Pending", "; ".join(filter(None, (some, waits)))), nodes=nodes, held=held, broken=broken)
    leaving = next((f"{pod.name}: {pod.reason}" for pod in running if pod.reason), "")
    return JobReport(JobState.RUNNING, told=_told("Running", broken or leaving), nodes=nodes, broken=broken)


def _end(status: Mapping[str, Any]) -> tuple[Cause | None, str]:
    """Returns why a pod ended or is ending, as far as Kubernetes says, and how for people."""
    disruption = next((each for each in _conditions(status) if each.get("type") in ("DisruptionTarget", "TerminationTarget") and _holds(each)), None)
    terminated = [each["state"]["terminated"] for each in status.get("containerStatuses") or () if (each.get("state") or {}).get("terminated")]
    words = [str(status.get("reason") or ""), *(str(each.get("reason") or "") for each in terminated)]
    cause = next((_REASONS[word] for word in words if word in _REASONS), None)
    if cause is None and words[0].startswith("OutOf"):  # OutOfcpu, OutOfnvidia.com/gpu: the machine had promised more than it has
        cause = Cause.NODE
    told = [words[0], str(status.get("message") or "")]
    if disruption is not None:
        cause = cause or _DISRUPTIONS.get(str(disruption.get("reason")))
        told += [str(disruption.get("reason") or ""), str(disruption.get("message") or "")]
    for each in (each for each in terminated if each.get("exitCode")):
        told += [f"{each.get('reason') or 'ended'}, exit code {each.get('exitCode')}", _last_words(str(each.get("message") or ""))]
    return cause, ": ".join(dict.fromkeys(word.strip() for word in told if word.strip()))


def _last_words(message: str) -> str:
    """Returns what an agent's log ended with, which Kubernetes keeps of a container that failed: its error, or else the last line."""
    _, found, error = message.rpartition(_ERROR)
    words = error.partition(": ")[2] if found else message.rstrip().rpartition("\n")[2]
    return " ".join(words.split())[:_MOST_LAST_WORDS]


def _waits_for(status: Mapping[str, Any]) -> tuple[str, str]:
    """Returns Kubernetes' word for what a pod waits for, and the same in plain words."""
    waiting = [
        (each.get("state") or {}).get("waiting") for each in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
    ]
    found = next((each for each in waiting if each and each.get("reason")), None)
    if found is None:
        found = next((each for each in _conditions(status) if each.get("type") == "PodScheduled" and each.get("status") == "False"), None)
    if found is None:
        return "", ""
    word, message = str(found.get("reason") or ""), str(found.get("message") or "").strip()
    plain = _WORDS.get(word, word)
    return word, f"{plain}: {message}" if message else plain


def _machine_is_silent(status: Mapping[str, Any]) -> bool:
    """Whether the node controller says that a pod is not ready, and not its kubelet, which would say so of its containers."""
    ready = next((each for each in _conditions(status) if each.get("type") == "Ready"), None)
    containers = status.get("containerStatuses") or ()
    says_itself = ready is not None and str(ready.get("reason") or "") in _KUBELET_SAYS_SO
    running = bool(containers) and all("running" in (each.get("state") or {}) for each in containers)
    return ready is not None and ready.get("status") != "True" and running and not says_itself


def _conditions(status: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return status.get("conditions") or ()


def _holds(condition: Mapping[str, Any]) -> bool:
    return condition.get("status") == "True"


def _told(state: str, reason: str) -> str:
    return f"{state} ({reason})" if reason else state
