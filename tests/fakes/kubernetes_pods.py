"""Pods of tests: small manifests, and what becomes of them."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.api import Api

Json = dict[str, Any]
_LONGEST_S = 60.0


def pod(name: str, script: str, *, container: Json | None = None, **spec: Any) -> Json:
    """Returns a pod that runs a shell script and is not begun again.

    Args:
        name: of the pod.
        script: for `bash`.
        container: more of its only container.
        spec: more of its specification.
    """
    main = {"name": "main", "image": "host", "command": ["bash", "-c", script], **(container or {})}
    meta = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"restartPolicy": "Never", "containers": [main], **spec}}


class Namespace:
    """A namespace of one test, through the eyes of an administrator."""

    def __init__(self, api: "Api", name: str, *, is_there: bool = False) -> None:
        """Makes it, unless it is there."""
        self.api, self.name, self.path = api, name, f"/api/v1/namespaces/{name}"
        if not is_there:
            self._make()

    def _make(self) -> None:
        self.api.post("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}})
        self.wait(lambda: bool(self.api.get(f"{self.path}/serviceaccounts")["items"]), "a service account")

    def make(self, kind: str, value: Json) -> Json:
        """Makes an object: `pods`, `secrets`, …"""
        return self.api.post(f"{self.path}/{kind}", value)

    def pod(self, name: str) -> Json:
        """Returns a pod as it is now."""
        return self.api.get(f"{self.path}/pods/{name}")

    def pods(self) -> list[str]:
        """Returns the names of the pods that are there."""
        return [item["metadata"]["name"] for item in self.api.get(f"{self.path}/pods")["items"]]

    def log(self, name: str, query: str = "") -> str:
        """Returns what a pod printed."""
        return self.api.raw(f"{self.path}/pods/{name}/log{query}")

    def delete(self, name: str, *, grace_s: int | None = None) -> None:
        """Deletes a pod, with its own grace unless told."""
        self.api.delete(f"{self.path}/pods/{name}", {} if grace_s is None else {"gracePeriodSeconds": grace_s})

    def reaches(self, name: str, *phases: str) -> Json:
        """Waits until a pod is in one of these phases. Returns it."""
        self.wait(lambda: self.pod(name)["status"]["phase"] in phases, f"{name} {phases}")
        return self.pod(name)

    def ends(self, name: str) -> Json:
        """Waits until a pod has ended. Returns how its only container did."""
        state = self.reaches(name, "Succeeded", "Failed")["status"]["containerStatuses"][0]["state"]
        return dict(state["terminated"])

    def waits(self, name: str, reason: str) -> str:
        """Waits until a pod's container waits for a reason. Returns the message."""
        waiting: Json = {}

        def seen() -> bool:
            for status in self.pod(name)["status"].get("containerStatuses") or []:
                waiting.update(status["state"].get("waiting") or {})
            return bool(waiting.get("reason") == reason)

        self.wait(seen, f"{name} waiting: {reason}")
        return str(waiting.get("message", ""))

    def vanishes(self, name: str) -> None:
        """Waits until a pod is no more."""
        self.wait(lambda: name not in self.pods(), f"{name} gone")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for something, not for ever."""
        deadline = time.monotonic() + _LONGEST_S
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}"
            time.sleep(0.05)
