"""What pods refer to by name: Secrets, ConfigMaps, claims of volumes, tokens, and fields of their own."""

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.api import Api, ApiError, Json
from lab.quantity import parse

_BY_KEY = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


class NotThereError(Exception):
    """Something that a pod refers to is not there yet."""


class Lookup:
    """Looks things up for one pod, as its node, which may see what its pods refer to and nothing else."""

    def __init__(self, api: Api, pod: Json) -> None:
        """Args: pod: as the API has it."""
        self._api, self._pod = api, pod
        self._home = f"/api/v1/namespaces/{pod['metadata']['namespace']}"

    def config_map(self, name: str, *, optional: bool = False) -> Mapping[str, bytes]:
        """Returns a ConfigMap's values. Raises: NotThereError."""
        found = self._find("configmaps", name, optional=optional)
        plain = {key: value.encode() for key, value in (found.get("data") or {}).items()}
        return plain | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}

    def secret(self, name: str, *, optional: bool = False) -> Mapping[str, bytes]:
        """Returns a Secret's values. Raises: NotThereError."""
        found = self._find("secrets", name, optional=optional)
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}

    def claimed(self, name: str) -> Path:
        """Returns the folder behind a PersistentVolumeClaim. Raises: NotThereError: it is not bound, or to no folder."""
        volume = self._find("persistentvolumeclaims", name)["spec"].get("volumeName")
        if not volume:
            raise NotThereError(f'persistentvolumeclaim "{name}" is not bound')
        found = self._ask(f"/api/v1/persistentvolumes/{volume}")
        if "hostPath" not in found["spec"]:
            raise NotThereError(f'persistentvolume "{volume}" is no hostPath, which is all that these nodes can mount')
        return Path(found["spec"]["hostPath"]["path"])

    def token(self, *, audience: str | None, seconds: int) -> str:
        """Returns a token of the pod's service account that ends with the pod. Raises: NotThereError."""
        meta = self._pod["metadata"]
        spec: dict[str, Any] = {
            "expirationSeconds": seconds,
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]},
        }
        if audience:
            spec["audiences"] = [audience]
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        account = self._pod["spec"].get("serviceAccountName", "default")
        try:
            return str(self._api.post(f"{self._home}/serviceaccounts/{account}/token", request)["status"]["token"])
        except ApiError as error:
            raise NotThereError(str(error)) from error

    def _find(self, kind: str, name: str, *, optional: bool = False) -> Json:
        try:
            return self._ask(f"{self._home}/{kind}/{name}")
        except NotThereError:
            if optional:
                return {}
            raise

    def _ask(self, path: str) -> Json:
        try:
            return self._api.get(path)
        except ApiError as error:
            raise NotThereError(str(error)) from error


def own_field(pod: Json, path: str, *, pod_address: str, node_address: str) -> str:
    """Returns the value of a `fieldRef`.

    Args:
        pod: as the API has it.
        path: as `metadata.name`.
        pod_address: `status.podIP`.
        node_address: `status.hostIP`.

    Raises:
        NotThereError: there is no such field.
    """
    meta, spec = pod["metadata"], pod["spec"]
    if match := _BY_KEY.fullmatch(path):
        return str((meta.get(match[1]) or {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        return "\n".join(f'{key}="{value}"' for key, value in sorted((meta.get(path.split(".")[1]) or {}).items()))
    values = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.podIP": pod_address,
        "status.podIPs": pod_address,
        "status.hostIP": node_address,
    }
    if path not in values:
        raise NotThereError(f"no field {path}")
    return str(values[path])


def own_resource(container: Json, reference: Mapping[str, str]) -> str:
    """Returns the value of a `resourceFieldRef`: whole units of its divisor, rounded up."""
    kind, _, name = reference["resource"].partition(".")
    amount = parse(str((container.get("resources", {}).get(kind) or {}).get(name, "0")))
    divisor = parse(str(reference.get("divisor") or "1")) or 1.0
    return str(int(-(-amount // divisor)))
