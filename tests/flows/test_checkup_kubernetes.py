"""`headrace doctor` on Kubernetes: each finding, and its mend, from what a server says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.checkup import findings_of
from flows.checkup_kubernetes import NEEDED, kubernetes_findings
from schemas.cluster_config import ClusterKind
from tests.fakes.in_process_work import config_with
from tests.fakes.kubernetes_api import FakeApi, Fault, api_at, kubernetes_speaking

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
CLUSTER: dict[str, Any] = {
    "kind": "kubernetes",
    "image": "registry.example.com/headrace:1.2",
    "queue": "gpu",
    "kubernetes": {
        "queueing": "kueue",
        "priority_class": "high",
        "service_account": "ranks",
        "volumes": [{"mount": "/mnt/headrace", "claim": "headrace"}],
        "stages": {"train": {"priority_class": "high"}},
    },
    "stages": {"train": {"nodes": 2}},
}


class Site:
    """A cluster that has everything, until a test takes something away."""

    def __init__(self, fake: FakeApi, url: str) -> None:
        self.fake, self.api = fake, api_at(url, answer_s=10.0)
        fake.answers = {
            "/version": {"gitVersion": "v1.33.0"},
            "/api/v1/namespaces/lab": {"status": {"phase": "Active"}},
            "/apis/scheduling.k8s.io/v1/priorityclasses/high": {},
            REVIEWS: {"status": {"allowed": True}},
        }
        fake.put(
            "persistentvolumeclaims", {"metadata": {"name": "headrace"}, "spec": {"accessModes": ["ReadWriteMany"]}, "status": {"phase": "Bound"}}
        )
        fake.put("localqueues", {"metadata": {"name": "gpu"}})
        fake.put("serviceaccounts", {"metadata": {"name": "ranks"}})

    def findings(self, root: str = "/mnt/headrace/data", corpus: str = "/mnt/headrace/text", **changes: Any) -> dict[str, tuple[str, str]]:
        """Returns subject → level and text."""
        config = config_with(cluster={**CLUSTER, **changes}, storage={"root": root}, corpus={"sources": [corpus]})
        found = kubernetes_findings(config, project=Path("/project"), root=root, api=self.api)
        assert all(each["mend"] for each in found if each["level"] != "ok" and each["subject"] not in ("storage.root", "cluster.image"))
        return {each["subject"]: (each["level"], each["what"]) for each in found}


@pytest.fixture
def site() -> Iterator[Site]:
    with kubernetes_speaking() as (fake, url):
        yield Site(fake, url)


def test_where_everything_is_there_all_is_well(site: Site) -> None:
    found = site.findings()
    assert {level for level, _ in found.values()} == {"ok"}
    assert list(found) == ["kubernetes", "namespace", "rights", "image", "claim", "queue"]
    assert found["kubernetes"][1].startswith("v1.33.0 at http://127.0.0.1:")
    assert site.fake.requests.count(f"POST {REVIEWS}") == sum(map(len, NEEDED.values()))


def test_a_cluster_that_does_not_answer_is_the_only_finding(site: Site) -> None:
    site.fake.faults.append(Fault("GET", "/version", 503))
    ((subject, (level, what)),) = site.findings().items()
    assert (subject, level) == ("kubernetes", "error")
    assert "does not answer" in what


@pytest.mark.parametrize(
    ("path", "subject", "says"),
    [
        ("/api/v1/namespaces/lab", "namespace", "lab does not exist"),
        ("/apis/scheduling.k8s.io/v1/priorityclasses/high", "priority class", "high does not exist"),
        ("persistentvolumeclaims", "claim", "headrace does not exist"),
        ("localqueues", "queue", "LocalQueue gpu does not exist"),
        ("serviceaccounts", "service account", "ranks does not exist in lab"),
    ],
)
def test_what_is_missing_is_an_error(site: Site, path: str, subject: str, says: str) -> None:
    if path.startswith("/"):
        del site.fake.answers[path]
    else:
        (name,) = [name for kind, name in site.fake.kinds() if kind == path]
        site.fake.remove(path, name)
    assert site.findings()[subject] == ("error", says)


def test_rights_that_are_missing_are_listed_all_at_once(site: Site) -> None:
    site.fake.answers[REVIEWS] = {"status": {"allowed": False}}
    level, what = site.findings()["rights"]
    assert level == "error"
    assert "create pods, get pods, list pods, watch pods, delete pods, deletecollection pods, create services" in what


@pytest.mark.parametrize(
    ("changes", "level", "says"),
    [
        ({"status": {"phase": "Lost"}}, "error", "headrace is Lost"),
        ({"status": {"phase": "Pending"}}, "warning", "not bound yet"),
        ({"spec": {"accessModes": ["ReadWriteOnce"]}}, "error", "only one node can have it"),
    ],
)
def test_claims_that_will_not_do(site: Site, changes: dict[str, Any], level: str, says: str) -> None:
    site.fake.put("persistentvolumeclaims", {**site.fake.objects["persistentvolumeclaims", "headrace"], **changes})
    found = site.findings()["claim"]
    assert found[0] == level
    assert says in found[1]


@pytest.mark.parametrize(
    ("image", "level"), [("a/b:1.2", "ok"), ("a/b@sha256:0", "ok"), ("a/b", "warning"), ("host:5000/b", "warning"), ("b:latest", "warning")]
)
def test_an_image_that_may_change_is_warned_of(site: Site, image: str, level: str) -> None:
    assert site.findings(image=image)["image"][0] == level


def test_what_no_cluster_would_take_is_found_too(site: Site) -> None:
    found = site.findings(root="/elsewhere", image=None)
    assert found["storage.root"][0] == "error"
    assert found["cluster.image"][0] == "error"


def test_pods_that_share_only_a_bucket_are_told_what_they_lack(site: Site) -> None:
    """The text goes there through the bucket; a tokenizer and credentials do not."""
    alone = {"queueing": "kueue", "secrets": ["storage"]}
    assert {level for level, _ in site.findings(root="s3://bucket/data", corpus="/home/me/text", kubernetes=alone).values()} == {"ok"}
    found = site.findings(root="s3://bucket/data", kubernetes={"queueing": "kueue"})
    assert found["cluster.kubernetes.secrets"][0] == "warning"
    assert "pods of validate, tokenizer, tokenize, train, export, evaluate get no credentials" in found["cluster.kubernetes.secrets"][1]
    assert site.findings(corpus="/home/me/text")["corpus.sources.0"] == (
        "warning",
        "pods of validate do not see /home/me/text, unless their image has it",
    )


def test_what_this_user_may_not_look_at_is_said_so(site: Site) -> None:
    site.fake.faults += [
        Fault("GET", kind, 403, "Forbidden", "no", times=9) for kind in ("persistentvolumeclaims", "localqueues", "/api/v1/namespaces/lab")
    ]
    found = site.findings()
    assert {subject: found[subject][0] for subject in ("claim", "queue", "namespace")} == {"claim": "warning", "queue": "warning", "namespace": "ok"}


def test_without_a_way_to_a_cluster_doctor_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (found,) = [each for each in findings_of(None, ClusterKind.KUBERNETES) if each["subject"] == "kubernetes"]
    assert found["level"] == "error"
    assert "no way to a Kubernetes cluster" in found["what"]
