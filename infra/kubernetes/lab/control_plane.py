"""The command lines of the control plane's programs. Pure: nothing is started here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ETCD, API_SERVER, CONTROLLERS, SCHEDULER = "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"
DAEMONS = (ETCD, API_SERVER, CONTROLLERS, SCHEDULER)
"""In the order in which they are started."""

NUM_PORTS = 100
"""A cluster's ports: five of the control plane, and from the tenth on one for each node's kubelet."""
_SERVICES = "10.96.0.0/16"
_GATES = "TTLAfterFinished=true,BoundServiceAccountTokenVolume=true"
"""Off in 1.20, on in what clusters run today: finished Jobs go, and tokens are bound to their pod."""
_NO_ENDPOINTS = "*,-endpoint,-endpointslice,-endpointslicemirroring"
"""Addresses of pods here are of the loopback, which no Endpoints object may name; the nodes resolve names of services themselves."""


@dataclass(frozen=True)
class Settings:
    """What a cluster's programs are started with; a file in its folder."""

    folder: str
    binaries: str
    """Folder of the programs."""
    port: int
    """The first of its ports."""
    network: str
    """First two numbers of its addresses, `127.N`: nodes are `127.N.0.I`, pods of node I are `127.N.I.…`."""
    tokens: Mapping[str, str]
    """User → token; the nodes' users are named like `system:node:node1`."""
    grace_s: int
    """After so long without a sign of life a node counts as not ready; its pods are deleted as long after that."""

    @property
    def url(self) -> str:
        """Address of the API server."""
        return f"https://127.0.0.1:{self.port}"

    def to_json(self) -> dict[str, Any]:
        """Returns the file's content."""
        return asdict(self)


def argv_of(name: str, settings: Settings) -> tuple[str, ...]:
    """Returns the command line of a program.

    Args:
        name: one of `DAEMONS`.
        settings: of the cluster.
    """
    options = {ETCD: _etcd, API_SERVER: _api_server, CONTROLLERS: _controllers, SCHEDULER: _scheduler}[name](settings)
    return (str(Path(settings.binaries, name)), *(f"--{key}={value}" for key, value in options.items()))


def _etcd(settings: Settings) -> Mapping[str, object]:
    client, peer = _etcd_url(settings), f"http://127.0.0.1:{settings.port + 4}"
    return {
        "data-dir": f"{settings.folder}/etcd",
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
        "unsafe-no-fsync": "true",  # a killed etcd loses nothing, a crashed machine's test is over
    }


def _etcd_url(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.port + 3}"


def _api_server(settings: Settings) -> Mapping[str, object]:
    pki = f"{settings.folder}/pki"
    return {
        "etcd-servers": _etcd_url(settings),
        "bind-address": "127.0.0.1",
        "advertise-address": "127.0.0.1",
        "secure-port": settings.port,
        "tls-cert-file": f"{pki}/api.crt",
        "tls-private-key-file": f"{pki}/api.key",
        "client-ca-file": f"{pki}/ca.crt",
        "token-auth-file": f"{settings.folder}/tokens.csv",
        "authorization-mode": "Node,RBAC",
        "anonymous-auth": "false",
        "enable-admission-plugins": "NodeRestriction",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": f"{pki}/sa.pub",
        "service-account-signing-key-file": f"{pki}/sa.key",
        "service-cluster-ip-range": _SERVICES,
        "endpoint-reconciler-type": "none",
        "allow-privileged": "true",
        "kubelet-preferred-address-types": "InternalIP",
        "kubelet-certificate-authority": f"{pki}/ca.crt",
        "kubelet-client-certificate": f"{pki}/kubelet-client.crt",
        "kubelet-client-key": f"{pki}/kubelet-client.key",
        "default-not-ready-toleration-seconds": settings.grace_s,
        "default-unreachable-toleration-seconds": settings.grace_s,
        "feature-gates": _GATES,
        "profiling": "false",
    }


def _controllers(settings: Settings) -> Mapping[str, object]:
    return {
        **_common(settings, user="kube-controller-manager", port=settings.port + 1),
        "kubeconfig": f"{settings.folder}/kubeconfigs/kube-controller-manager",
        "leader-elect": "false",
        "service-account-private-key-file": f"{settings.folder}/pki/sa.key",
        "root-ca-file": f"{settings.folder}/pki/ca.crt",
        "use-service-account-credentials": "true",
        "controllers": _NO_ENDPOINTS,
        "feature-gates": _GATES,
        "node-monitor-period": "1s",
        "node-monitor-grace-period": f"{settings.grace_s}s",
        "node-startup-grace-period": f"{settings.grace_s}s",
        "node-eviction-rate": "10",
        "unhealthy-zone-threshold": "1",  # of two nodes one may well be lost
        "kube-api-qps": "100",
        "kube-api-burst": "200",
    }


def _scheduler(settings: Settings) -> Mapping[str, object]:
    return {**_common(settings, user="kube-scheduler", port=settings.port + 2), "config": f"{settings.folder}/scheduler.json"}


def _common(settings: Settings, *, user: str, port: int) -> Mapping[str, object]:
    kubeconfig = f"{settings.folder}/kubeconfigs/{user}"
    return {
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "secure-port": port,
        "port": 0,
        "profiling": "false",
    }


def scheduler_config(settings: Settings) -> dict[str, Any]:
    """Returns the scheduler's configuration: pods that found no place are tried again within two seconds."""
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1beta1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": f"{settings.folder}/kubeconfigs/kube-scheduler", "qps": 100, "burst": 200},
        "leaderElection": {"leaderElect": False},
        "healthzBindAddress": f"127.0.0.1:{settings.port + 7}",  # elsewhere the same for every cluster on a machine
        "metricsBindAddress": f"127.0.0.1:{settings.port + 7}",
        "podInitialBackoffSeconds": 1,
        "podMaxBackoffSeconds": 2,
    }


def kubeconfig(settings: Settings, *, token: str, namespace: str = "default") -> dict[str, Any]:
    """Returns a kubeconfig for somebody with a token."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": settings.url, "certificate-authority": f"{settings.folder}/pki/ca.crt"}}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user", "namespace": namespace}}],
        "current-context": "test",
    }
