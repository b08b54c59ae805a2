"""What a site applies: it renders, current schemas take it strictly, and what it promises of every object holds."""

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from flows.checkup_kubernetes import NEEDED
from tests.fakes.kubernetes_site import BASE, KUBECTL, OVERLAYS, pod_spec_of, rendered

Json = dict[str, Any]
pytestmark = [pytest.mark.kubernetes]


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Json]:
    """All objects of an overlay."""
    return rendered(request.param)


def of_kind(objects: list[Json], *kinds: str) -> list[Json]:
    return [found for found in objects if found["kind"] in kinds]


def workloads(objects: list[Json]) -> list[Json]:
    return of_kind(objects, "Deployment", "StatefulSet")


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_current_schemas_take_every_object(objects: list[Json], version: str) -> None:
    for found in objects:
        kubernetes_validate.validate(found, version, strict=True)
    assert len(objects) >= 30


def test_what_is_misspelt_does_not_pass(objects: list[Json]) -> None:
    broken = {**workloads(objects)[0], "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_every_object_has_one_of_two_namespaces(objects: list[Json]) -> None:
    assert {found["metadata"]["namespace"] for found in objects if found["kind"] != "Namespace"} == {"headrace", "headrace-services"}
    for namespace in of_kind(objects, "Namespace"):
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {found["kind"] for found in objects} & {"ClusterRole", "ClusterRoleBinding", "Secret"} == set()


def test_every_pod_is_restricted(objects: list[Json]) -> None:
    for workload in workloads(objects):
        pod = pod_spec_of(workload)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is (pod.get("serviceAccountName") == "headrace-worker")
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"].keys() == {"memory"}
            assert {"/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


def test_secrets_are_named_and_never_written(objects: list[Json]) -> None:
    secretive = ("PASSWORD", "AUTH_STRING", "SECRET", "ACCESS_KEY")
    for workload in workloads(objects):
        for variable in pod_spec_of(workload)["containers"][0].get("env", []):
            if any(word in variable["name"] for word in secretive):
                assert variable.keys() == {"name", "valueFrom"}
    for settings in of_kind(objects, "ConfigMap"):
        for name, value in settings["data"].items():
            assert "_SECRET_" in name or not any(word in name for word in secretive), f"{name} is a reference at most"
            assert "://" not in value or "@" not in value or ":" not in value.partition("://")[2].partition("@")[0], f"{name} has a password"


def test_references_lead_somewhere(objects: list[Json]) -> None:
    there = {(found["kind"], found["metadata"].get("namespace"), found["metadata"]["name"]) for found in objects}
    labels = [workload["spec"]["template"]["metadata"]["labels"] for workload in workloads(objects)]
    for workload in workloads(objects):
        pod, namespace = pod_spec_of(workload), workload["metadata"]["namespace"]
        maps = [source["configMapRef"]["name"] for container in pod["containers"] for source in container.get("envFrom", [])]
        maps += [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
        claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        assert {("ConfigMap", namespace, name) for name in maps} | {("PersistentVolumeClaim", namespace, name) for name in claims} <= there
        assert "serviceAccountName" not in pod or ("ServiceAccount", namespace, pod["serviceAccountName"]) in there
    for service in of_kind(objects, "Service"):
        assert sum(service["spec"]["selector"].items() <= each.items() for each in labels) == 1
    for binding in of_kind(objects, "RoleBinding"):
        assert ("Role", binding["metadata"]["namespace"], binding["roleRef"]["name"]) in there
        assert {("ServiceAccount", subject["namespace"], subject["name"]) for subject in binding["subjects"]} <= there


def test_pods_of_both_namespaces_are_cut_off_unless_a_policy_says_otherwise(objects: list[Json]) -> None:
    policies = of_kind(objects, "NetworkPolicy")
    denying = {policy["metadata"]["namespace"] for policy in policies if policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}}
    assert denying == {"headrace", "headrace-services"}
    (database,) = [policy for policy in policies if policy["metadata"]["name"] == "postgresql"]
    names = [peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in database["spec"]["ingress"][0]["from"]]
    assert names == ["headrace-prefect", "headrace-mlflow"]


def test_nothing_calls_home(objects: list[Json]) -> None:
    settings = {found["metadata"]["name"].rpartition("-")[0]: found["data"] for found in of_kind(objects, "ConfigMap")}
    assert settings["headrace-prefect"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert settings["headrace-worker"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert settings["headrace-mlflow"]["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_the_flow_may_do_what_doctor_asks_for(objects: list[Json]) -> None:
    (role,) = [found for found in of_kind(objects, "Role") if found["metadata"]["name"] == "headrace-flow"]
    unbounded = {(group, name): tuple(rule["verbs"]) for rule in role["rules"] if "resourceNames" not in rule
                 for group in rule["apiGroups"] for name in rule["resources"]}  # fmt: skip
    assert unbounded == dict(NEEDED)


def test_the_databases_are_those_of_the_services() -> None:
    """Kustomize reads no file outside of its folder."""
    assert (BASE / "databases.sql").read_bytes() == (BASE.parents[1] / "services/postgresql/databases.sql").read_bytes()


def test_one_line_changes_an_image_everywhere(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in BASE.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    site = tmp_path / "site"
    site.mkdir()
    image = {"name": "registry.example.com/headrace-control", "newName": "registry.site/h", "newTag": "9"}
    (site / "kustomization.yaml").write_text(yaml.safe_dump({"bases": ["../base"], "images": [image]}))
    done = subprocess.run((str(KUBECTL), "kustomize", str(site)), capture_output=True, text=True, check=True)
    images = [pod_spec_of(found)["containers"][0]["image"] for found in workloads(list(yaml.safe_load_all(done.stdout)))]
    assert sorted(images) == ["docker.io/library/postgres:15-bookworm", *["registry.site/h:9"] * 3]
