"""A real API server takes what a site applies, keeps every field of it, and lets each account do what it must and nothing beyond."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab.api import Api, ApiError

from tests.fakes.kubernetes_objects import losses
from tests.fakes.kubernetes_pods import pod
from tests.fakes.kubernetes_site import OVERLAYS, account, path_of, rendered, site_applied

Json = dict[str, Any]
pytestmark = [pytest.mark.slow, pytest.mark.kubernetes]
JOBS, SERVICES = "/api/v1/namespaces/headrace", "/api/v1/namespaces/headrace-services"
BATCH = "/apis/batch/v1/namespaces/headrace/jobs"
EVERYBODY = {("authorization.k8s.io", "selfsubjectaccessreviews", "create"), ("authorization.k8s.io", "selfsubjectrulesreviews", "create")}


@pytest.fixture(scope="module")
def site(kubernetes_nodes: Any) -> Iterator[Api]:
    with site_applied(kubernetes_nodes) as api:
        yield api


@pytest.fixture
def flow(site: Api, kubernetes_nodes: Any) -> Api:
    return account(kubernetes_nodes, "headrace-flow", namespace="headrace")


@pytest.fixture
def worker(site: Api, kubernetes_nodes: Any) -> Api:
    return account(kubernetes_nodes, "headrace-worker", namespace="headrace-services")


def rules(api: Api, namespace: str) -> set[tuple[str, ...]]:
    """Returns all that an account may do in a namespace, as the API server counts it: group, resource[, object], verb."""
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}}
    status = api.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)["status"]
    return {
        (group, "/".join((resource, *([name] if name else []))), verb)
        for rule in status["resourceRules"]
        for group in rule.get("apiGroups", [""])
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""]
        for verb in rule["verbs"]
    } - EVERYBODY


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(ApiError) as error:
        act()
    assert error.value.status == 403, error.value


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_of_it_is_refused_or_lost(site: Api, overlay: str) -> None:
    for found in rendered(overlay):
        there = {item["metadata"]["name"] for item in site.get(path_of(found))["items"]}
        if found["metadata"]["name"] not in there:  # what the fixture made was compared when it was made
            assert list(losses(found, site.post(f"{path_of(found)}?dryRun=All", found))) == []


def test_a_flow_may_do_what_the_launcher_does_and_nothing_else(flow: Api) -> None:
    pods = {("", "pods", verb) for verb in ("create", "get", "list", "watch", "delete", "deletecollection")}
    named = {("", "persistentvolumeclaims/headrace-storage", "get"), ("", "serviceaccounts/headrace-pods", "get")}
    assert rules(flow, "headrace") == pods | {("", "services", verb) for verb in ("create", "get", "delete")} | named
    assert [rules(flow, other) for other in ("headrace-services", "default", "kube-system")] == [set()] * 3

    nowhere = pod("of-a-flow", "true", nodeSelector={"no": "such"})
    service = {"metadata": {"name": "of-a-flow"}, "spec": {"clusterIP": "None", "selector": {"app": "of-a-flow"}}}
    flow.post(f"{JOBS}/services", service)
    flow.post(f"{JOBS}/pods", nowhere)
    assert flow.get(f"{JOBS}/pods/of-a-flow")["metadata"]["name"] == "of-a-flow"
    found = flow.get(f"{JOBS}/pods")
    assert [item["metadata"]["name"] for item in found["items"]] == ["of-a-flow"]
    flow.delete(f"{JOBS}/pods/of-a-flow", {"gracePeriodSeconds": 0})
    events = flow.watch(f"{JOBS}/pods", version=found["metadata"]["resourceVersion"])
    assert next(iter(events))["object"]["metadata"]["name"] == "of-a-flow"
    events.close()  # type: ignore[attr-defined]
    flow.delete(f"{JOBS}/pods?labelSelector=app%3Dof-a-flow")
    assert flow.get(f"{JOBS}/services/of-a-flow")["spec"]["clusterIP"] == "None"
    flow.delete(f"{JOBS}/services/of-a-flow")


def test_a_flow_is_refused_everything_else(flow: Api) -> None:
    for path in ("secrets", "secrets/headrace-prefect", "configmaps", "events", "services", "persistentvolumeclaims", "serviceaccounts/default"):
        refused(lambda path=path: flow.get(f"{JOBS}/{path}"))
    refused(lambda: flow.get(f"{JOBS}/pods/any/log"))
    refused(lambda: flow.post(f"{JOBS}/pods/any/exec?command=true", {}))
    refused(lambda: flow.post(f"{JOBS}/pods/any/eviction", {"metadata": {"name": "any"}}))
    refused(lambda: flow.patch(f"{JOBS}/pods/any", {}))
    refused(lambda: flow.post(f"{JOBS}/serviceaccounts/headrace-flow/token", {}))
    refused(lambda: flow.post(BATCH, {"metadata": {"name": "any"}}))
    for path in ("/api/v1/nodes", "/api/v1/namespaces", "/api/v1/pods", "/api/v1/persistentvolumes", f"{SERVICES}/pods", f"{SERVICES}/secrets"):
        refused(lambda path=path: flow.get(path))
    refused(lambda: flow.post(f"{SERVICES}/pods", pod("any", "true")))
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/headrace"
    refused(lambda: flow.post(f"{rbac}/roles", {"metadata": {"name": "more"}, "rules": [{"apiGroups": [""], "resources": ["*"], "verbs": ["*"]}]}))


def test_a_worker_may_make_follow_and_end_jobs_and_nothing_else(worker: Api) -> None:
    jobs = {("batch", "jobs", verb) for verb in ("create", "get", "list", "watch", "delete")}
    assert rules(worker, "headrace") == jobs | {("", "pods", "list"), ("", "pods", "watch"), ("", "pods/log", "get")}
    assert [rules(worker, other) for other in ("headrace-services", "default")] == [set()] * 2, "not even where it runs itself"
    refused(lambda: worker.get(f"{JOBS}/secrets"))
    refused(lambda: worker.get("/apis/batch/v1/jobs"))
    refused(lambda: worker.post(f"{JOBS}/pods", pod("any", "true")))
    refused(lambda: worker.get(f"{SERVICES}/secrets/headrace-postgresql"))


def test_pods_that_compute_may_do_nothing(site: Api, kubernetes_nodes: Any) -> None:
    nobody = account(kubernetes_nodes, "headrace-pods", namespace="headrace")
    assert [rules(nobody, namespace) for namespace in ("headrace", "headrace-services", "default")] == [set()] * 3
    refused(lambda: nobody.get(f"{JOBS}/pods"))
