"""Merges the recipe's `pod_patch` into pods, and says what is wrong with it. PURE.

Maps are merged, `null` removes, lists of things with a name are merged by that name, other lists are replaced: what `kubectl patch` calls a strategic
merge, for the lists that pods have. Every field is looked up in the models of the official client, so a misspelt one is found before anything is
submitted, whatever the cluster's version.
"""

import difflib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from schemas.errors import Problem
from schemas.frozen import thaw

AGENT = "agent"
"""Name of the container that runs the agent."""
_MERGE_KEYS = {
    **dict.fromkeys(("containers", "initContainers", "volumes", "env", "imagePullSecrets"), "name"),
    "volumeMounts": "mountPath",
    "hostAliases": "ip",
}
_APPENDED = frozenset({"tolerations", "topologySpreadConstraints", "envFrom"})
"""Lists whose entries have no name: the patch adds to them."""
PROTECTED: Mapping[str, str] = {
    "metadata.name": "set by Headrace, which finds its pods by it",
    "metadata.generateName": "set by Headrace, which finds its pods by it",
    "metadata.namespace": "cluster.namespace",
    "metadata.ownerReferences": "set by Headrace, so that nothing is left behind",
    "metadata.finalizers": "would leave pods behind",
    "spec.restartPolicy": "Never: what follows an end is decided by one policy, with a new attempt",
    "spec.hostname": "set by Headrace",
    "spec.subdomain": "set by Headrace",
    "spec.nodeName": "would pass by the scheduler; cluster.kubernetes.node_selector",
    "spec.terminationGracePeriodSeconds": "cluster.grace_s",
    "spec.activeDeadlineSeconds": "cluster.time_limit",
    "spec.serviceAccountName": "cluster.kubernetes.service_account",
    "spec.priorityClassName": "cluster.kubernetes.priority_class",
    f"spec.containers.{AGENT}.image": "cluster.image",
    f"spec.containers.{AGENT}.command": "set by Headrace",
    f"spec.containers.{AGENT}.args": "set by Headrace",
    f"spec.containers.{AGENT}.workingDir": "set by Headrace",
    f"spec.containers.{AGENT}.name": "set by Headrace",
}
"""What a patch may not touch → where it comes from."""


def merged(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with `patch` over it; neither is changed."""
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, Mapping) else {}, value)
        elif isinstance(value, list | tuple) and isinstance(result.get(key), list):
            result[key] = _merged_list(key, result[key], value)
        else:
            result[key] = thaw(value)
    return result


def patch_problems(patch: Mapping[str, Any], *, key: str) -> list[Problem]:
    """Returns everything that is wrong with a patch.

    Args:
        patch: parts of a pod template.
        key: the recipe's key, dotted.
    """
    from kubernetes.client.models.v1_pod_template_spec import V1PodTemplateSpec  # heavy, and only for those who have a patch

    problems = [
        Problem(f"{key}.{path}", repr(value), f"not to be patched: {PROTECTED[path]}") for path, value in _paths(patch, "") if path in PROTECTED
    ]
    problems += _label_problems(patch, key=key)
    problems += [Problem(f"{key}.{path}", "", message, nearest=nearest) for path, message, nearest in _unknown(patch, V1PodTemplateSpec, "")]
    if not problems:
        try:
            V1PodTemplateSpec.model_validate(_without_nulls(thaw(patch)))
        except ValidationError as error:
            for wrong in error.errors():
                where = ".".join(str(part) for part in wrong["loc"] if part not in ("function-before", "function-after"))
                if wrong["type"] != "missing":  # a part of a thing: the rest of it may be in the pod already
                    problems.append(Problem(f"{key}.{where}", repr(wrong["input"])[:80], wrong["msg"]))
    return problems


def _merged_list(name: str, base: list[Any], patch: list[Any] | tuple[Any, ...]) -> list[Any]:
    if name in _APPENDED:
        return [*base, *thaw(list(patch))]
    by = _MERGE_KEYS.get(name)
    if by is None or not all(isinstance(entry, Mapping) and by in entry for entry in (*base, *patch)):
        return list(thaw(list(patch)))
    result = {entry[by]: entry for entry in base}
    for entry in patch:
        result[entry[by]] = merged(result.get(entry[by], {}), entry)
    return list(result.values())


def _paths(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields every dotted path below `value`; containers by name."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            inner = f"{path}.{key}" if path else str(key)
            if not (key == "name" and path.rpartition(".")[0].endswith("ontainers")):  # what tells it apart is not changed by being said
                yield inner, below
            yield from _paths(below, inner)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            name = entry.get("name", index) if isinstance(entry, Mapping) else index
            yield from _paths(entry, f"{path}.{name}")


def _label_problems(patch: Mapping[str, Any], *, key: str) -> list[Problem]:
    metadata = patch.get("metadata")
    labels = [(kind, name) for kind in ("labels", "annotations") for name in (metadata.get(kind) or {})] if isinstance(metadata, Mapping) else []
    ours = [(kind, name) for kind, name in labels if str(name).startswith(("headrace/", "app.kubernetes.io/"))]
    return [Problem(f"{key}.metadata.{kind}.{name}", "", "not to be patched: Headrace finds its pods by it") for kind, name in ours]


def _unknown(value: Any, model: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Yields (path, what is wrong, nearest field) for fields that the model does not have."""
    kind, is_list = _model_of(model)
    if is_list and isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _unknown(entry, kind, f"{path}.{index}")
        return
    if kind is None or not isinstance(value, Mapping):
        return
    fields = {field.serialization_alias or name: field.annotation for name, field in kind.model_fields.items()}
    for key, below in value.items():
        inner = f"{path}.{key}" if path else str(key)
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            yield inner, "no such field in a pod template", near[0] if near else ""
        else:
            yield from _unknown(below, fields[key], inner)


def _model_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Returns the model in a type such as `Optional[List[V1Volume]]`, and whether it is a list's."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        return None, False
    found = next((model for model, _ in map(_model_of, arguments) if model is not None), None)
    return found, origin is list or any(typing.get_origin(argument) is list for argument in arguments)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(below) for key, below in value.items() if below is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value
