"""The status of a pod, as the API has it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.api import Json
from lab.container import Exit


@dataclass(frozen=True)
class ContainerState:
    """Where a container is: waiting, unless it runs or has ended."""

    name: str
    image: str
    reason: str = "ContainerCreating"
    """Why it waits."""
    message: str = ""
    started: str = ""
    """Since when it runs; empty: it does not."""
    exit: Exit | None = None
    ready: bool = False
    restarts: int = 0
    last: Exit | None = None
    """How its life before this one ended."""


def status_of(
    uid: str,
    *,
    known: Sequence[Json],
    phase: str,
    addresses: tuple[str, str],
    started: str,
    containers: Sequence[ContainerState],
    init: Sequence[ContainerState] = (),
    reason: str = "",
    message: str = "",
    time: str,
) -> Json:
    """Returns what to patch a pod's status with.

    Args:
        uid: of the pod: a namesake is not meant.
        known: conditions until now; those that do not change keep their time.
        phase: of the pod.
        addresses: of the pod and of its node.
        started: when the node took it on.
        containers: states of the containers.
        init: states of the init containers.
        reason: why the pod as a whole ended, `Evicted` say.
        message: the same for people.
        time: now.
    """
    initialized = all(state.exit is not None and state.exit.code == 0 for state in init)
    ready = phase == "Running" and all(state.ready for state in containers)
    before = {condition["type"]: condition for condition in known}
    wanted = {"Initialized": initialized, "ContainersReady": ready, "Ready": ready}
    if reason == "Evicted":
        wanted["DisruptionTarget"] = True  # since 1.25
    conditions = []
    for kind, value in wanted.items():
        same = before.get(kind, {}).get("status") == str(value)
        why = "TerminationByKubelet" if kind == "DisruptionTarget" else ("PodCompleted" if phase == "Succeeded" and not value else "")
        conditions.append(
            {"type": kind, "status": str(value), "reason": why, "lastTransitionTime": before[kind]["lastTransitionTime"] if same else time}
        )
    status: dict[str, Any] = {
        "phase": phase,
        "hostIP": addresses[1],
        "startTime": started,
        "conditions": conditions,
        "containerStatuses": [_container(state) for state in containers],
        "reason": reason or None,
        "message": message or None,
    }
    if init:
        status["initContainerStatuses"] = [_container(state) for state in init]
    if addresses[0]:
        status |= {"podIP": addresses[0], "podIPs": [{"ip": addresses[0]}]}
    return {"metadata": {"uid": uid}, "status": status}


def phase_of(states: Sequence[ContainerState], *, policy: str) -> str:
    """Returns the phase of a pod whose init containers are done."""
    if all(state.exit is not None for state in states) and policy != "Always":
        if all(state.exit is not None and state.exit.code == 0 for state in states):
            return "Succeeded"
        if policy == "Never":
            return "Failed"
    return "Running" if any(state.started or state.exit or state.restarts for state in states) else "Pending"


def _container(state: ContainerState) -> Json:
    value: dict[str, Any] = {
        "name": state.name,
        "image": state.image,
        "imageID": f"test://{state.image}" if state.started or state.exit else "",
        "containerID": f"test://{state.name}/{state.restarts}" if state.started or state.exit else "",
        "ready": state.ready,
        "started": bool(state.started and state.exit is None),
        "restartCount": state.restarts,
        "lastState": {"terminated": _exit(state.last)} if state.last else {},
    }
    if state.exit is not None:
        value["state"] = {"terminated": _exit(state.exit)}
    elif state.started:
        value["state"] = {"running": {"startedAt": state.started}}
    else:
        value["state"] = {"waiting": {"reason": state.reason, **({"message": state.message} if state.message else {})}}
    return value


def _exit(end: Exit) -> Json:
    value: dict[str, Any] = {"exitCode": end.code, "reason": end.reason, "startedAt": end.started or None, "finishedAt": end.finished}
    return {**value, "message": end.message} if end.message else value
