"""The variables of a container."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from lab.api import Json
from lab.lookup import Lookup, NotThereError, own_resource

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.][\w.-]*)\)")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment_of(
    container: Json, *, image: Mapping[str, str], cluster: Mapping[str, str], hostname: str, lookup: Lookup, field: Callable[[str], str]
) -> dict[str, str]:
    """Returns a container's variables.

    Args:
        container: of the pod's specification.
        image: the image's own variables.
        cluster: where the API server is.
        hostname: of the pod.
        lookup: finds what it refers to.
        field: path → value of a field of the pod.

    Raises:
        NotThereError: something that it refers to is not there.
    """
    values = {"PATH": _PATH, "HOSTNAME": hostname, **image, **cluster}
    for source in container.get("envFrom") or []:
        for kind, find in (("configMapRef", lookup.config_map), ("secretRef", lookup.secret)):
            if reference := source.get(kind):
                found = find(reference["name"], optional=bool(reference.get("optional")))
                values |= {source.get("prefix", "") + key: value.decode() for key, value in found.items()}
    for entry in container.get("env") or []:
        value = _value(entry, container, lookup=lookup, field=field)
        if value is not None:
            values[entry["name"]] = expand(value, values) if "valueFrom" not in entry else value
    return values


def expand(text: str, values: Mapping[str, str]) -> str:
    """Returns a text with `$(NAME)` replaced; `$$` stands for `$`, and unknown names stay."""
    return _REFERENCE.sub(lambda match: "$" if match[0] == "$$" else values.get(match[1], match[0]), text)


def _value(entry: Mapping[str, Any], container: Json, *, lookup: Lookup, field: Callable[[str], str]) -> str | None:
    """Returns the value of a variable; None: what it refers to is not there, and need not be."""
    source = entry.get("valueFrom")
    if source is None:
        return str(entry.get("value", ""))
    if reference := source.get("fieldRef"):
        return field(reference["fieldPath"])
    if reference := source.get("resourceFieldRef"):
        return own_resource(container, reference)
    kind, find = ("secret", lookup.secret) if "secretKeyRef" in source else ("configmap", lookup.config_map)
    reference = source.get("secretKeyRef") or source["configMapKeyRef"]
    optional = bool(reference.get("optional"))
    found = find(reference["name"], optional=optional)
    if reference["key"] in found:
        return found[reference["key"]].decode()
    if optional:
        return None
    raise NotThereError(f'couldn\'t find key {reference["key"]} in {kind} "{reference["name"]}"')
