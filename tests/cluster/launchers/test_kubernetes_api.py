"""The way to a cluster: which file, which context, which namespace; what is missing is said; what is sent is never told."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.launchers import kubernetes_api
from cluster.launchers.kubernetes_api import ApiRefusedError, ApiSilentError, connect
from schemas.errors import ConfigError, UnreachableError
from tests.fakes.kubernetes_api import Fault, api_at, kubernetes_speaking
from tests.fakes.kubernetes_job import PLAIN, cluster_of

FILE = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": "https://one.example:6443"}}, {"name": "d", "cluster": {"server": "https://two.example:6443"}}],
    "users": [{"name": "u", "user": {"token": "hunter2"}}],
    "contexts": [
        {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "training"}},
        {"name": "two", "context": {"cluster": "d", "user": "u"}},
    ],
    "current-context": "one",
}


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(FILE))
    monkeypatch.setenv("KUBECONFIG", str(path))
    return str(path)


@pytest.mark.parametrize(
    ("section", "namespace", "leads_to"),
    [
        ({}, None, ("https://one.example:6443", "training")),
        ({}, "mine", ("https://one.example:6443", "mine")),
        ({"context": "two"}, None, ("https://two.example:6443", "default")),
    ],
)
def test_which_cluster_and_namespace(kubeconfig: str, section: dict[str, Any], namespace: str | None, leads_to: tuple[str, str]) -> None:
    api = connect(cluster_of(PLAIN, namespace=namespace, kubernetes=section))
    assert (api.server, api.namespace) == leads_to


def test_the_recipes_file_comes_before_the_environments(kubeconfig: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(yaml.safe_dump({**FILE, "current-context": "two"}))
    assert connect(cluster_of(PLAIN, kubernetes={"kubeconfig": str(other)})).server == "https://two.example:6443"


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [({"context": "twoo"}, "cluster.kubernetes.context", "two"), ({"kubeconfig": "/no/such/file"}, "cluster.kubernetes.kubeconfig", "")],
)
def test_what_is_not_there_is_the_recipes_problem(kubeconfig: str, section: dict[str, Any], key: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(cluster_of(PLAIN, kubernetes=section))
    (problem,) = caught.value.problems
    assert (problem.key, problem.nearest) == (key, nearest)


def test_in_a_pod_its_own_account_is_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes.config import incluster_config

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("token", "ca.crt", "namespace"):
        (tmp_path / name).write_text("training\n")
    monkeypatch.setattr(kubernetes_api, "_OWN_ACCOUNT", tmp_path)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    api = connect(cluster_of(PLAIN))
    assert (api.server, api.namespace) == ("https://10.0.0.1:443", "training")


def test_where_there_is_no_way_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UnreachableError, match="no way to a Kubernetes cluster"):
        connect(cluster_of(PLAIN))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("GET", "pods", 403, "Forbidden", "no"), ApiRefusedError),
        (Fault("GET", "pods", 500, "InternalError", "etcd"), ApiSilentError),
        (Fault("GET", "pods", 429, "TooManyRequests", "slow"), ApiSilentError),
        (Fault("GET", "pods", 401, "Unauthorized", "expired"), ApiSilentError),
        (Fault("GET", "pods"), ApiSilentError),
    ],
    ids=["refused", "not well", "too busy", "expired", "cut off"],
)
def test_a_refusal_is_told_from_silence(fault: Fault, error: type[Exception]) -> None:
    with kubernetes_speaking() as (fake, url):
        fake.faults.append(fault)
        api = api_at(url)
        with pytest.raises(error):
            api.call("GET", api.objects("pods"))
        assert len(fake.requests) == 1, "asked again by nobody but who knows what for"


def test_a_proxys_own_page_is_no_answer_about_a_pod() -> None:
    from tests.fakes.server_process import free_port

    api = api_at(f"http://127.0.0.1:{free_port()}", answer_s=0.5)
    with pytest.raises(ApiSilentError):
        api.call("GET", api.objects("pods"))
    with pytest.raises(ApiSilentError, match="404"):
        kubernetes_api._check(404, b"<html>not here</html>")
    with pytest.raises(ApiRefusedError):
        kubernetes_api._check(404, b'{"kind": "Status", "reason": "NotFound", "message": "gone"}')
