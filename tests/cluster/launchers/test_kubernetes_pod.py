"""What Kubernetes' words mean: for one pod, and for all pods of an attempt."""

from typing import Any

import pytest

from cluster.launchers.kubernetes_pod import Pod, pod_of, removed, report_of
from cluster.launchers.protocol import JobState
from schemas.attempt import Cause

RUNNING = [{"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "ready": True}]


def pod(status: dict[str, Any], *, leaving: bool = False, rank: int = 0, num_nodes: int = 1, machine: str = "m0") -> Pod:
    metadata = {
        "name": f"job-{rank}",
        "labels": {"headrace/node-rank": str(rank)},
        "annotations": {"headrace/key": "k", "headrace/num-nodes": str(num_nodes)},
    }
    metadata |= {"deletionTimestamp": "2026-01-01T00:00:00Z"} if leaving else {}
    found = pod_of({"metadata": metadata, "spec": {"nodeName": machine} if machine else {}, "status": status})
    assert found is not None
    return found


def waiting(reason: str, message: str = "m") -> dict[str, Any]:
    return {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}


def terminated(reason: str, code: int) -> dict[str, Any]:
    return {"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"reason": reason, "exitCode": code}}}]}


def told(*lines: str) -> dict[str, Any]:
    """An agent that failed, and the end of its log as Kubernetes keeps it."""
    state = {"terminated": {"reason": "Error", "exitCode": 9, "message": "\n".join(lines) + "\n"}}
    return {"phase": "Failed", "containerStatuses": [{"state": state}]}


def disrupted(reason: str) -> dict[str, Any]:
    return {"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "because"}]}


@pytest.mark.parametrize(
    ("status", "cause", "reason"),
    [
        ({"phase": "Succeeded"}, None, ""),
        (terminated("Error", 75), None, "Error, exit code 75"),
        (
            told("2026-01-01 00:00:00,000 INFO a.b: begun", "2026-01-01 00:00:01,000 ERROR a.b: s3://b: no credentials", "  mend: name a Secret"),
            None,
            "Error, exit code 9: s3://b: no credentials mend: name a Secret",
        ),
        (
            told("Traceback …", "ModuleNotFoundError: No module named 'cluster'"),
            None,
            "Error, exit code 9: ModuleNotFoundError: No module named 'cluster'",
        ),
        (terminated("OOMKilled", 137), Cause.OUT_OF_MEMORY, "OOMKilled, exit code 137"),
        (terminated("ContainerStatusUnknown", 137), Cause.NODE, "ContainerStatusUnknown, exit code 137"),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}, Cause.PREEMPTION, "Evicted: low on disk"),
        ({"phase": "Failed", "reason": "NodeLost"}, Cause.NODE, "NodeLost"),
        ({"phase": "Failed", "reason": "Terminated"}, Cause.PREEMPTION, "Terminated"),
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, Cause.TIME_LIMIT, "DeadlineExceeded"),
        ({"phase": "Failed", "reason": "OutOfnvidia.com/gpu"}, Cause.NODE, "OutOfnvidia.com/gpu"),
        ({"phase": "Failed", "reason": "UnexpectedAdmissionError"}, Cause.NODE, "UnexpectedAdmissionError"),
        (disrupted("PreemptionByScheduler"), Cause.PREEMPTION, "PreemptionByScheduler: because"),
        (disrupted("EvictionByEvictionAPI"), Cause.PREEMPTION, "EvictionByEvictionAPI: because"),
        (disrupted("DeletionByTaintManager"), Cause.NODE, "DeletionByTaintManager: because"),
        (disrupted("DeletionByPodGC"), Cause.NODE, "DeletionByPodGC: because"),
        (disrupted("TerminationByKubelet"), Cause.PREEMPTION, "TerminationByKubelet: because"),
        (disrupted("SomethingNew"), None, "SomethingNew: because"),
    ],
)
def test_why_a_pod_ended(status: dict[str, Any], cause: Cause | None, reason: str) -> None:
    found = pod(status)
    assert (found.state, found.cause, found.reason) == (JobState.ENDED, cause, reason)
    assert found.failed == (status["phase"] == "Failed")


@pytest.mark.parametrize(
    ("status", "machine", "reason", "held"),
    [
        ({}, "", "", False),
        (
            {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2"}]},
            "",
            "no machine fits: 0/2",
            False,
        ),
        (
            {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]},
            "",
            "its queue has not admitted it",
            False,
        ),
        (waiting("ImagePullBackOff", "Back-off"), "m0", "its image cannot be fetched: Back-off", True),
        (waiting("CreateContainerConfigError", 'secret "s" not found'), "m0", 'its container cannot be configured: secret "s" not found', True),
        (waiting("ContainerCreating", ""), "m0", "its container is being created", True),
        (waiting("SomethingNew", "x"), "m0", "SomethingNew: x", False),
    ],
)
def test_what_a_pod_waits_for_in_plain_words(status: dict[str, Any], machine: str, reason: str, held: bool) -> None:
    found = pod(status, machine=machine)
    assert (found.state, found.reason, found.held) == (JobState.PENDING, reason, held)


@pytest.mark.parametrize("word", ["InvalidImageName", "ErrImageNeverPull"])
def test_what_no_waiting_mends_is_an_end(word: str) -> None:
    found = pod(waiting(word))
    assert (found.state, found.cause) == (JobState.ENDED, Cause.USER_CODE)


@pytest.mark.parametrize(
    ("status", "leaving", "state", "silent"),
    [
        ({"phase": "Running", "containerStatuses": RUNNING, "conditions": [{"type": "Ready", "status": "True"}]}, False, JobState.RUNNING, False),
        ({"phase": "Running", "containerStatuses": RUNNING, "conditions": [{"type": "Ready", "status": "False"}]}, False, JobState.RUNNING, True),
        ({"phase": "Running", "containerStatuses": RUNNING, "conditions": [{"type": "Ready", "status": "False"}]}, True, JobState.ENDED, True),
        ({"phase": "Running", "containerStatuses": RUNNING, "conditions": [{"type": "Ready", "status": "True"}]}, True, JobState.RUNNING, False),
        (
            {"phase": "Running", "containerStatuses": RUNNING, "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]},
            True,
            JobState.RUNNING,
            False,
        ),
        ({"phase": "Running", "reason": "NodeLost"}, True, JobState.ENDED, True),
    ],
    ids=["runs", "its machine is silent: it may come back", "given up by Kubernetes", "asked to end", "ends, by its kubelet's word", "NodeLost"],
)
def test_a_machine_that_is_silent(status: dict[str, Any], leaving: bool, state: JobState, silent: bool) -> None:
    found = pod(status, leaving=leaving)
    assert (found.state, found.silent) == (state, silent)
    assert found.cause is (Cause.NODE if state is JobState.ENDED else None)
    assert bool(report_of([found]).broken) == (silent and not leaving)


def test_pods_of_others_are_none_of_ours() -> None:
    assert pod_of({"metadata": {"name": "x"}}) is None
    assert pod_of({"metadata": {"name": "x", "annotations": {"headrace/key": "k"}, "labels": {"headrace/node-rank": "many"}}}) is None


def gang(*states: str) -> list[Pod]:
    """Pods of an attempt: `-` none, `p`ending, `r`unning, `s`ucceeded, `f`ailed, `e`victed, `x` removed while it ran."""
    made = {
        "p": lambda rank: pod({"phase": "Pending"}, rank=rank, num_nodes=len(states), machine=""),
        "r": lambda rank: pod({"phase": "Running"}, rank=rank, num_nodes=len(states), machine=f"m{rank}"),
        "s": lambda rank: pod({"phase": "Succeeded"}, rank=rank, num_nodes=len(states), machine=f"m{rank}"),
        "f": lambda rank: pod(terminated("Error", 1), rank=rank, num_nodes=len(states), machine=f"m{rank}"),
        "e": lambda rank: pod({"phase": "Failed", "reason": "Evicted"}, rank=rank, num_nodes=len(states), machine=f"m{rank}"),
        "x": lambda rank: removed(pod({"phase": "Running"}, rank=rank, num_nodes=len(states), machine=f"m{rank}")),
    }
    return [made[state](rank) for rank, state in enumerate(states) if state != "-"]


@pytest.mark.parametrize(
    ("states", "state", "told", "cause", "is_broken"),
    [
        ("", JobState.ABSENT, "", None, False),
        ("r", JobState.RUNNING, "Running", None, False),
        ("rr", JobState.RUNNING, "Running", None, False),
        ("rp", JobState.PENDING, "Pending (1 of 2 pods run)", None, False),
        ("r-", JobState.PENDING, "Pending (1 of 2 pods run)", None, False),
        ("-r", JobState.ABSENT, "incomplete: 1 of 2 pods", None, False),
        ("-pp", JobState.ABSENT, "incomplete: 2 of 3 pods", None, False),
        ("rs", JobState.RUNNING, "Running", None, False),
        ("rf", JobState.RUNNING, "Running (job-1: Error, exit code 1)", None, True),
        ("rx", JobState.RUNNING, "Running (job-1: removed)", None, True),
        ("xr", JobState.RUNNING, "Running (job-0: removed)", None, True),
        ("pe", JobState.PENDING, "Pending (0 of 2 pods run)", None, True),
        ("ss", JobState.ENDED, "Succeeded", None, False),
        ("sf", JobState.ENDED, "Failed (job-1: Error, exit code 1)", None, False),
        ("fe", JobState.ENDED, "Failed (job-1: Evicted)", Cause.PREEMPTION, False),
        ("xx", JobState.ENDED, "Failed (job-0: removed)", None, False),
    ],
)
def test_what_all_pods_together_mean(states: str, state: JobState, told: str, cause: Cause | None, is_broken: bool) -> None:
    report = report_of(gang(*states))
    assert (report.state, report.told, report.cause) == (state, told, cause)
    assert bool(report.broken) == is_broken
