"""A cluster in a folder of its own: started, changed and ended. Everything about it is in the folder, so any process may go on with it."""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import ssl
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import binaries
from lab.api import Api, ApiError, Json
from lab.certificates import Certificates
from lab.control_plane import API_SERVER, CONTROLLERS, DAEMONS, ETCD, NUM_PORTS, SCHEDULER, Settings, argv_of, kubeconfig, scheduler_config
from lab.errors import ClusterError
from lab.ports import free_ports, is_free
from lab.processes import Processes, until

_PROGRAM = Path(__file__).resolve().parents[1] / "test_cluster.py"
_USERS = {
    "admin": ("system:masters",),
    "system:kube-controller-manager": (),
    "system:kube-scheduler": (),
}
_KUBECONFIGS = {"kube-controller-manager": "system:kube-controller-manager", "kube-scheduler": "system:kube-scheduler"}
_MOST_NODES = 50
_GUARD = "guard"


class KubernetesTestCluster:
    """A control plane, and nodes that run pods as processes of this machine."""

    def __init__(self, folder: Path, *, cache: Path | None = None) -> None:
        """Args: folder: absolute. cache: where the control plane's programs are kept, unless at the usual place."""
        self.folder, self._cache = folder, cache
        self._processes = Processes(folder)

    # ---- who asks ------------------------------------------------------------------------------------------------------

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "admin.kubeconfig"

    @property
    def settings(self) -> Settings:
        """What it was started with. Raises: ClusterError: it never was."""
        try:
            return Settings(**json.loads((self.folder / "cluster.json").read_text()))
        except FileNotFoundError as error:
            raise ClusterError(f"there is no cluster in {self.folder}") from error

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes, powered on or not."""
        return sorted((path.stem for path in (self.folder / "nodes").glob("*.json")), key=lambda name: int(name.removeprefix("node")))

    def api(self, user: str = "admin") -> Api:
        """Returns the API as one of its users sees it."""
        settings = self.settings
        return Api(settings.url, token=settings.tokens[user], ca=f"{settings.folder}/pki/ca.crt")

    def service_account(self, name: str, *, namespace: str = "default", hours: int = 10) -> Path:
        """Returns a kubeconfig for a service account that is there already. Raises: ApiError."""
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": hours * 3600}}
        token = self.api().post(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", request)["status"]["token"]
        path = self.folder / "kubeconfigs" / f"{namespace}.{name}"
        self._write(path, kubeconfig(self.settings, token=token, namespace=namespace))
        return path

    # ---- up and down ---------------------------------------------------------------------------------------------------

    def up(self, *, nodes: int = 0, owner: int | None = None, grace_s: int = 8, **offered: Any) -> None:
        """Starts it; does nothing when it is up already.

        Args:
            nodes: how many.
            owner: a process with which the cluster ends and its folder goes, even if that process is killed.
            grace_s: after so many seconds of silence a node counts as not ready; its pods are deleted as long after that.
            offered: what each node has; see `add_node`.

        Raises:
            ClusterError: something is missing, or did not come up.
        """
        if self.healthy() and len(self.nodes) == nodes:
            return
        self.down()
        programs = binaries.ready(self._cache)
        for name in ("etcd", "pki", "kubeconfigs", "nodes", "images", "run"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in ("kubeconfigs", "nodes", "images"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o700)
        self._configure(programs, grace_s=grace_s)
        if owner is not None:
            self._processes.spawn(_GUARD, sys.executable, str(_PROGRAM), _GUARD, str(self.folder), "--owner", str(owner))
        for name in DAEMONS:
            self.start(name)
        self.add_image("host", rootfs="/")
        for _ in range(nodes):
            self.add_node(**offered)
        self.wait_ready(*self.nodes)

    def down(self) -> None:
        """Ends everything that `up` started; safe to repeat. Raises: ClusterError: a process does not end."""
        for name in (*self.nodes, *reversed(DAEMONS), _GUARD):
            if self._processes.pid(name) != os.getpid():
                self.kill(name)
        if not until(lambda: not self._processes.kill_rest(), seconds=20):  # whose files somebody took away
            raise ClusterError("not all of its processes end", mend=f"ps -ef | grep {self.folder}")

    def start(self, name: str) -> None:
        """Starts a program of the control plane, or powers a node on; waits until it serves. Raises: ClusterError."""
        if self._processes.pid(name) is not None:
            return
        if name in DAEMONS:
            self._processes.spawn(name, *argv_of(name, self.settings))
            self._wait_for(name)
        elif name in self.nodes:
            self._start_node(name)
        else:
            raise ClusterError(f"no {name}; there are: {', '.join((*DAEMONS, *self.nodes))}")

    def kill(self, name: str) -> None:
        """Kills a program; of a node: powers it off, and all that runs there is gone at once. Raises: ClusterError."""
        if name not in (*DAEMONS, *self.nodes, _GUARD):
            raise ClusterError(f"no {name}; there are: {', '.join((*DAEMONS, *self.nodes))}")
        ended = self._processes.power_off(name, seconds=20) if name in self.nodes else self._processes.stop(name, signal.SIGKILL, seconds=20)
        if not ended:
            raise ClusterError(f"{name} does not end")

    def healthy(self) -> bool:
        """Whether all programs live and the API server answers."""
        if not self.kubeconfig.exists() or any(self._processes.pid(name) is None for name in (*DAEMONS, *self.nodes)):
            return False
        return self._is_served(API_SERVER)

    def pids(self) -> Mapping[str, int | None]:
        """Returns program or node → number of its process, while it lives."""
        return {name: self._processes.pid(name) for name in (*DAEMONS, *self.nodes)}

    # ---- what the cluster has ------------------------------------------------------------------------------------------

    def add_node(self, *, cpus: int = 4, memory: str = "8Gi", gpus: int = 0, labels: Mapping[str, str] | None = None) -> str:
        """Adds a node and powers it on. Returns its name.

        Args:
            cpus: whatever the machine has.
            memory: as Kubernetes writes it.
            gpus: pretended `nvidia.com/gpu`.
            labels: of the node.

        Raises:
            ClusterError: it cannot be started.
        """
        settings, index = self.settings, len(self.nodes) + 1
        if index > _MOST_NODES:
            raise ClusterError(f"{index} nodes: at most {_MOST_NODES}")
        name, address = f"node{index}", f"{settings.network}.0.{index}"
        Certificates(self.folder / "pki").issue(name, subject=f"/O=system:nodes/CN=system:node:{name}", addresses=[address], hosts=[name])
        description = {
            "name": name,
            "address": address,
            "port": settings.port + 9 + index,
            "pods": f"{settings.network}.{index}",
            "cpus": cpus,
            "memory": memory,
            "gpus": gpus,
            "labels": dict(labels or {}),
        }
        self._write(self.folder / "nodes" / f"{name}.json", description)
        self._start_node(name)
        return name

    def add_image(self, name: str, *, rootfs: str, **configuration: Any) -> None:
        """Makes an image known to all nodes. A container gets a copy of it that is thrown away with it.

        Args:
            name: as pods name it.
            rootfs: a folder; `/`: this machine's own files.
            configuration: `entrypoint`, `command`, `env`, `workdir`, `user`, as images have them.
        """
        self._write(self.folder / "images" / f"{name.replace('/', '%2F')}.json", {"name": name, "rootfs": rootfs, **configuration})

    def add_volume(self, name: str, path: Path, *, size: str = "10Gi", storage_class: str = "") -> None:
        """Makes a PersistentVolume of a folder, for whichever claim fits. Raises: ApiError."""
        spec = {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": storage_class,
            "hostPath": {"path": str(path)},
        }
        self.api().post("/api/v1/persistentvolumes", {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})

    def evict(self, node: str, *, namespace: str, pod: str, message: str = "The node was low on resource: memory.") -> None:
        """Ends a pod as a node does that is short of something. Raises: ClusterError: the pod is not there."""
        description = json.loads((self.folder / "nodes" / f"{node}.json").read_text())
        tls = ssl.create_default_context(cafile=str(self.folder / "pki/ca.crt"))
        tls.load_cert_chain(self.folder / "pki/kubelet-client.crt", self.folder / "pki/kubelet-client.key")
        connection = http.client.HTTPSConnection(description["address"], description["port"], context=tls, timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", f"/evict/{namespace}/{pod}", body=message)
            answer = connection.getresponse()
            if answer.status != 200:
                raise ClusterError(f"{node}: {answer.read().decode()}")

    def wait_ready(self, *nodes: str, seconds: float = 30) -> None:
        """Waits until nodes are ready for pods. Raises: ClusterError."""
        api = self.api()
        for name in nodes:
            if not until(lambda name=name: _is_ready(api, name), seconds=seconds):  # type: ignore[misc]
                raise ClusterError(f"{name} did not become ready\n{self._processes.last_words(name)}")

    # ---- how ----------------------------------------------------------------------------------------------------------

    def _configure(self, programs: Path, *, grace_s: int) -> None:
        number = zlib.crc32(str(self.folder).encode())
        users = [*_USERS, *(f"system:node:node{index}" for index in range(1, _MOST_NODES + 1))]
        settings = Settings(
            folder=str(self.folder),
            binaries=str(programs),
            port=free_ports(10000 + number % 200 * NUM_PORTS),
            network=f"127.{192 + number // 200 % 60}",
            tokens={user: secrets.token_urlsafe(24) for user in users},
            grace_s=grace_s,
        )
        self._write(self.folder / "cluster.json", settings.to_json())
        rows = []
        for user, token in settings.tokens.items():
            groups = ("system:nodes",) if user.startswith("system:node:") else _USERS[user]
            rows.append(",".join([token, user, user, *([f'"{",".join(groups)}"'] if groups else [])]))
        self._write_text(self.folder / "tokens.csv", "\n".join(rows) + "\n")
        self._write(self.kubeconfig, kubeconfig(settings, token=settings.tokens["admin"]))
        for name, user in _KUBECONFIGS.items():
            self._write(self.folder / "kubeconfigs" / name, kubeconfig(settings, token=settings.tokens[user]))
        self._write(self.folder / "scheduler.json", scheduler_config(settings))
        pki = Certificates(self.folder / "pki")
        pki.found()
        names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
        pki.issue("api", subject="/CN=kube-apiserver", addresses=["127.0.0.1", "10.96.0.1"], hosts=names)
        pki.issue("kubelet-client", subject="/O=system:masters/CN=kube-apiserver")

    def _start_node(self, name: str) -> None:
        if os.geteuid() != 0:
            raise ClusterError("nodes need root: they mount, and run processes as other users", mend="as root; `up DIR --nodes 0` does without")
        alone = ("unshare", "--uts", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child")
        package = {"PYTHONPATH": str(_PROGRAM.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        self._processes.spawn(name, *alone, sys.executable, "-m", "lab.node", str(self.folder), name, env=package)

    def _wait_for(self, name: str) -> None:
        if not until(lambda: self._processes.pid(name) is None or self._is_served(name), seconds=90) or self._processes.pid(name) is None:
            raise ClusterError(f"{name} did not come up\n{self._processes.last_words(name)}", mend=f"see {self._processes.log(name)}")

    def _is_served(self, name: str) -> bool:
        """Whether a program does its part: that it takes connections, that it answers, that what it makes is there."""
        settings = self.settings
        if name == ETCD:
            return not is_free(settings.port + 3)
        if name == SCHEDULER:
            return not is_free(settings.port + 2)
        with contextlib.suppress(ApiError):
            if name == API_SERVER:
                return self.api().raw("/readyz") == "ok"
            if name == CONTROLLERS:
                return bool(self.api().get("/api/v1/namespaces/default/serviceaccounts/default"))
        return False

    def _write(self, path: Path, value: Json) -> None:
        self._write_text(path, json.dumps(value, indent=1) + "\n")

    def _write_text(self, path: Path, text: str) -> None:
        """Writes a file for our eyes only, at once."""
        temporary = path.with_name(f".{path.name}.new")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        temporary.replace(path)


def _is_ready(api: Api, name: str) -> bool:
    try:
        node = api.get(f"/api/v1/nodes/{name}")
    except ApiError:
        return False
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in node["status"].get("conditions", []))
    return ready and not node["spec"].get("taints")
