"""The names by which pods find each other: a cluster's DNS, as files of hosts. There is none here, and no kube-proxy.

A pod with a hostname and a subdomain is HOSTNAME.SUBDOMAIN (a headless Service's pods); a Service is its first pod that is ready, on that
pod's own ports.
"""

from collections.abc import Iterable
from pathlib import Path

from lab.api import Json
from lab.specification import hostname_of

_DOMAIN = "svc.cluster.local"


def hosts_of(namespace: str, *, pods: Iterable[Json], services: Iterable[Json]) -> str:
    """Returns the lines of a hosts file, as pods of a namespace see it.

    Args:
        namespace: whose names may be short.
        pods: of the cluster.
        services: of the cluster.
    """
    running = [pod for pod in pods if pod.get("status", {}).get("podIP") and pod["status"].get("phase") in ("Pending", "Running")]
    lines = []
    for pod in sorted(running, key=_name):
        spec = pod["spec"]
        if spec.get("subdomain"):
            full = f"{spec.get('hostname') or pod['metadata']['name']}.{spec['subdomain']}"
            lines.append(_line(pod["status"]["podIP"], full, _space(pod), namespace))
    for service in sorted(services, key=_name):
        selector = service["spec"].get("selector")
        ready = [pod for pod in running if _space(pod) == _space(service) and selector and _is_selected(pod, selector) and _is_ready(pod)]
        if ready:
            lines.append(_line(min(ready, key=_name)["status"]["podIP"], _name(service), _space(service), namespace))
    return "".join(lines)


def write_hosts(path: Path, pod: Json, *, address: str, others: str) -> None:
    """Brings a pod's file of hosts up to date. Its containers have mounted that very file: it is written over and never replaced.

    Args:
        path: may not be there yet.
        pod: as the API has it.
        address: of the pod.
        others: lines of `hosts_of`.
    """
    spec, own = pod["spec"], [hostname_of(pod)]
    if spec.get("subdomain"):
        own.insert(0, f"{own[0]}.{spec['subdomain']}.{_space(pod)}.{_DOMAIN}")
    more = "".join(f"{alias['ip']} {' '.join(alias['hostnames'])}\n" for alias in spec.get("hostAliases") or [])
    text = f"127.0.0.1 localhost\n{address} {' '.join(own)}\n{more}{others}".encode()
    if not path.exists() or path.read_bytes() != text:
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(text)
            file.truncate()


def _line(address: str, name: str, space: str, namespace: str) -> str:
    names = [f"{name}.{space}.{_DOMAIN}", f"{name}.{space}.svc", f"{name}.{space}", *([name] if space == namespace else [])]
    return f"{address} {' '.join(names)}\n"


def _name(item: Json) -> str:
    return str(item["metadata"]["name"])


def _space(item: Json) -> str:
    return str(item["metadata"]["namespace"])


def _is_selected(pod: Json, selector: dict[str, str]) -> bool:
    return selector.items() <= (pod["metadata"].get("labels") or {}).items()


def _is_ready(pod: Json) -> bool:
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in pod["status"].get("conditions") or [])
