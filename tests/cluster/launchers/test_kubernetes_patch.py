"""Pod patches: what is merged how, and what is refused."""

from typing import Any

import pytest

from cluster.launchers.kubernetes_patch import PROTECTED, merged, patch_problems

BASE: dict[str, Any] = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "hostIPC": True,
        "tolerations": [{"key": "ours"}],
        "containers": [{"name": "agent", "env": [{"name": "A", "value": "1"}], "volumeMounts": [{"mountPath": "/tmp", "name": "tmp"}]}],
        "dnsConfig": {"nameservers": ["1.1.1.1"]},
    },
}


@pytest.mark.parametrize(
    ("patch", "path", "value"),
    [
        ({"metadata": {"labels": {"b": "2"}}}, ("metadata", "labels"), {"a": "1", "b": "2"}),
        ({"spec": {"hostIPC": None}}, ("spec", "hostIPC"), None),
        ({"spec": {"tolerations": [{"key": "theirs"}]}}, ("spec", "tolerations"), [{"key": "ours"}, {"key": "theirs"}]),
        ({"spec": {"dnsConfig": {"nameservers": ["8.8.8.8"]}}}, ("spec", "dnsConfig", "nameservers"), ["8.8.8.8"]),
        ({"spec": {"containers": [{"name": "side"}]}}, ("spec", "containers", 1), {"name": "side"}),
        (
            {"spec": {"containers": [{"name": "agent", "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]}]}},
            ("spec", "containers", 0, "env"),
            [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}],
        ),
        (
            {"spec": {"containers": [{"name": "agent", "volumeMounts": [{"mountPath": "/tmp", "readOnly": True}]}]}},
            ("spec", "containers", 0, "volumeMounts"),
            [{"mountPath": "/tmp", "name": "tmp", "readOnly": True}],
        ),
    ],
    ids=["maps", "null removes", "lists without names grow", "other lists are replaced", "another container", "variables", "mounts by path"],
)
def test_how_things_are_merged(patch: dict[str, Any], path: tuple[str | int, ...], value: Any) -> None:
    found: Any = merged(BASE, patch)
    for part in path:
        found = found.get(part) if isinstance(found, dict) else found[part]
    assert found == value
    assert BASE["spec"]["tolerations"] == [{"key": "ours"}]


def test_a_patch_of_nothing_wrong_has_no_problems() -> None:
    patch = {
        "metadata": {"annotations": {"x/y": "z"}},
        "spec": {
            "dnsPolicy": "Default",
            "schedulingGates": [{"name": "site/gate"}],
            "containers": [{"name": "agent", "resources": {"limits": {"rdma/hca": "1"}}}, {"name": "side", "image": "x"}],
            "volumes": [{"name": "mine", "configMap": {"name": "c"}}],
        },
    }
    assert patch_problems(patch, key="k") == []


@pytest.mark.parametrize("path", PROTECTED)
def test_what_headrace_goes_by_is_refused_by_name(path: str) -> None:
    *parents, last = path.split(".")
    patch: Any = {last: "x"}
    for part in reversed(parents):
        patch = {part: patch} if part != "agent" else [{"name": "agent", **patch}]
    if path.endswith("agent.name"):
        assert patch_problems(patch, key="k") == []  # to say which container is meant is not to rename it
        return
    assert f"k.{path}" in [problem.key for problem in patch_problems(patch, key="k")]


def test_labels_of_ours_are_refused() -> None:
    (problem,) = patch_problems({"metadata": {"labels": {"headrace/job": "x", "mine": "y"}}}, key="k")
    assert problem.key == "k.metadata.labels.headrace/job"


@pytest.mark.parametrize(
    ("patch", "key", "nearest"),
    [
        ({"spec": {"tolerationz": []}}, "spec.tolerationz", "tolerations"),
        (
            {"spec": {"containers": [{"name": "agent", "securityContext": {"privilegd": True}}]}},
            "spec.containers.0.securityContext.privilegd",
            "privileged",
        ),
        ({"spec": {"affinity": {"nodeAfinity": {}}}}, "spec.affinity.nodeAfinity", "nodeAffinity"),
        ({"spec": {"hostIPC": "yes"}}, "spec.hostIPC", ""),
    ],
)
def test_what_no_pod_has_is_found_with_what_was_meant(patch: dict[str, Any], key: str, nearest: str) -> None:
    (problem,) = patch_problems(patch, key="k")
    assert (problem.key, problem.nearest) == (f"k.{key}", nearest)
