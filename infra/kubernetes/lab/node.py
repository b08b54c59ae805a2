"""A node: registers with the API server, tells that it lives, and runs the pods that are bound to it.

    unshare --uts --mount --pid --mount-proc --fork --kill-child python3 -m lab.node FOLDER NAME      (`test_cluster.py` does so)

It is the first process of its namespaces: when it is killed, the kernel kills everything inside, and what it mounted is gone. It sees and
changes no more than a kubelet may: it is `system:node:NAME` to the API server's Node authorisation.
"""

import json
import logging
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lab.api import Api, ApiError, Json
from lab.control_plane import Settings
from lab.informer import Informer
from lab.logs import now
from lab.names import hosts_of
from lab.pod import PodRunner
from lab.server import serve
from lab.surroundings import Surroundings

_LOG = logging.getLogger(__name__)
_BEAT_S = 2.0
_MOST_PODS = 110
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_LEASE_S = 40


class Node:
    """One node."""

    def __init__(self, folder: Path, name: str) -> None:
        """Args: folder: of the cluster. name: of the node."""
        self._settings = Settings(**json.loads((folder / "cluster.json").read_text()))
        self._own: dict[str, Any] = json.loads((folder / "nodes" / f"{name}.json").read_text())
        self._name, self._pki = name, folder / "pki"
        self._api = Api(self._settings.url, token=self._settings.tokens[f"system:node:{name}"], ca=str(folder / "pki/ca.crt"))
        self._began = now()
        self._lock = threading.Lock()
        self._runners: dict[str, PodRunner] = {}
        self._addresses: dict[str, str] = {}
        self._surroundings = Surroundings(
            api=self._api,
            address=self._own["address"],
            folder=folder / "state" / name,
            images=folder / "images",
            cluster={"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self._settings.port)},
            hosts=self._hosts,
            tell=self._tell,
        )
        self._pods = Informer(self._api, "/api/v1/pods", on_change=self._see_pod)
        self._services = Informer(self._api, "/api/v1/services", on_change=self._see_service)

    def run(self) -> None:
        """Works for ever."""
        self._beat()
        self._services.start()
        self._pods.start()
        where = {"address": self._own["address"], "port": self._own["port"], "pki": self._pki, "name": self._name}
        threading.Thread(target=serve, args=(self._find,), kwargs=where, daemon=True).start()
        while True:
            time.sleep(_BEAT_S)
            self._beat()

    # ---- signs of life -------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        try:
            self._register()
            self._renew_lease()
        except ApiError as error:
            _LOG.warning("no sign of life: %s", error)

    def _register(self) -> None:
        """Tells what it has and that it is ready; makes the node's object when there is none."""
        status = {"status": self._status()}
        try:
            self._api.patch(f"/api/v1/nodes/{self._name}/status", status)
        except ApiError as error:
            if error.status != 404:
                raise
            labels = {"kubernetes.io/hostname": self._name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", **self._own["labels"]}
            self._api.post("/api/v1/nodes", {"kind": "Node", "apiVersion": "v1", "metadata": {"name": self._name, "labels": labels}, **status})

    def _status(self) -> Json:
        offered = {
            "cpu": str(self._own["cpus"]),
            "memory": self._own["memory"],
            "pods": str(_MOST_PODS),
            "ephemeral-storage": "100Gi",
            **({"nvidia.com/gpu": str(self._own["gpus"])} if self._own["gpus"] else {}),
        }
        conditions = [("Ready", "True", "KubeletReady"), *((f"{kind}Pressure", "False", "KubeletHasEnough") for kind in ("Memory", "Disk", "PID"))]
        return {
            "capacity": offered,
            "allocatable": offered,
            "addresses": [{"type": "InternalIP", "address": self._own["address"]}, {"type": "Hostname", "address": self._name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._own["port"]}},
            "conditions": [
                {"type": kind, "status": value, "reason": reason, "lastHeartbeatTime": now(), "lastTransitionTime": self._began}
                for kind, value, reason in conditions
            ],
            "nodeInfo": {
                "kubeletVersion": "v1.20.2-processes",
                "containerRuntimeVersion": "processes://1",
                "operatingSystem": "linux",
                "architecture": "amd64",
                **dict.fromkeys(("bootID", "kernelVersion", "kubeProxyVersion", "machineID", "osImage", "systemUUID"), ""),
            },
        }

    def _renew_lease(self) -> None:
        spec = {"holderIdentity": self._name, "leaseDurationSeconds": _LEASE_S, "renewTime": now()}
        try:
            self._api.patch(f"{_LEASES}/{self._name}", {"spec": spec})
        except ApiError as error:
            if error.status != 404:
                raise
            self._api.post(_LEASES, {"metadata": {"name": self._name, "namespace": "kube-node-lease"}, "spec": spec})

    # ---- pods ----------------------------------------------------------------------------------------------------------

    def _see_pod(self, uid: str, pod: Json | None) -> None:
        with self._lock:
            runner = self._runners.get(uid)
            if runner is not None and pod is None:
                runner.vanish()
            elif runner is not None and pod is not None:
                runner.update(pod)
            elif pod is not None and pod["spec"].get("nodeName") == self._name:
                self._begin(uid, pod)
        self._renew_hosts()

    def _begin(self, uid: str, pod: Json) -> None:
        self._addresses[uid] = self._address_for(pod)
        self._runners[uid] = PodRunner(pod, self._surroundings, address=self._addresses[uid], on_end=lambda: self._forget(uid))
        self._runners[uid].start()

    def _address_for(self, pod: Json) -> str:
        """Returns a pod's address: the one that it had before this node lost its power, or one that is nobody's."""
        if pod["spec"].get("hostNetwork"):
            return str(self._own["address"])
        if had := pod.get("status", {}).get("podIP"):
            return str(had)
        taken = {other.get("status", {}).get("podIP") for other in self._pods.objects()} | set(self._addresses.values())
        return next(address for number in range(2, 255) if (address := f"{self._own['pods']}.{number}") not in taken)

    def _forget(self, uid: str) -> None:
        with self._lock:
            del self._runners[uid], self._addresses[uid]

    def _find(self, namespace: str, name: str) -> PodRunner | None:
        with self._lock:
            return next((runner for runner in self._runners.values() if runner.name == f"{namespace}/{name}"), None)

    def _see_service(self, uid: str, service: Json | None) -> None:
        del uid, service
        self._renew_hosts()

    def _renew_hosts(self) -> None:
        with self._lock:
            for runner in self._runners.values():
                runner.renew_hosts()

    def _hosts(self, namespace: str) -> str:
        return hosts_of(namespace, pods=self._pods.objects(), services=self._services.objects())

    def _tell(self, pod: Json, reason: str, message: str) -> None:
        meta, time_of = pod["metadata"], now()
        event = {
            "metadata": {"name": f"{meta['name']}.{secrets.token_hex(8)}", "namespace": meta["namespace"]},
            "involvedObject": {"kind": "Pod", "apiVersion": "v1", **{key: meta[key] for key in ("name", "namespace", "uid", "resourceVersion")}},
            "reason": reason,
            "message": message,
            "type": "Warning",
            "count": 1,
            "firstTimestamp": time_of,
            "lastTimestamp": time_of,
            "source": {"component": "kubelet", "host": self._name},
        }
        try:
            self._api.post(f"/api/v1/namespaces/{meta['namespace']}/events", event)
        except ApiError as error:
            _LOG.warning("no event: %s", error)


def main() -> None:
    """Runs a node."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folder, name = Path(sys.argv[1]), sys.argv[2]
    socket.sethostname(name)
    Node(folder, name).run()


if __name__ == "__main__":
    main()
