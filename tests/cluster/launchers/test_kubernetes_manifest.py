"""Manifests: golden texts, what current Kubernetes' own schemas say to them, and what every pod must have whatever the recipe says."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cluster.launchers.kubernetes import KubernetesLauncher
from cluster.launchers.kubernetes_manifest import grace_s, manifests, owned
from cluster.launchers.kubernetes_name import job_name
from cluster.launchers.kubernetes_request import has_credentials, request_problems
from cluster.layout import ArtifactLayout
from cluster.next_attempt import next_attempt
from cluster.storage import FileStorage
from schemas.canonical import canonical_json
from schemas.cluster_config import ClusterConfig
from schemas.errors import ConfigError
from schemas.job import JobKind, JobSpec
from schemas.progress import Heartbeat, RankPhase, RankProgress
from schemas.stage import Stage
from tests.fakes.golden import assert_golden
from tests.fakes.kubernetes_job import FULL, KEY, PLAIN, cluster_of, job_of

VERSIONS = ("1.30", kubernetes_validate.latest_version())
OWNER = {"metadata": {"name": job_name(KEY), "uid": "f3a1"}}


def gpu_job(**changes: Any) -> JobSpec:
    return job_of(**{"gpus_per_node": 8, "time_limit_s": 86400.0, "excluded_nodes": ("a7.site", "a9.site"), **changes})


def volcano() -> ClusterConfig:
    return cluster_of(FULL, kubernetes={"queueing": "volcano"})


def array_job() -> JobSpec:
    return job_of(kind=JobKind.ARRAY, stage=Stage.TOKENIZE, step_name="group", num_items=40, num_nodes=3, storage_root="s3://bucket/data")


CASES = {
    "kubernetes_pods.yaml": (job_of(), cluster_of(PLAIN)),
    "kubernetes_pods_full.yaml": (gpu_job(), cluster_of(FULL)),
    "kubernetes_pods_volcano.yaml": (gpu_job(num_nodes=1), volcano()),
    "kubernetes_pods_array.yaml": (
        array_job(),
        cluster_of({**PLAIN, "kubernetes": {"secrets": ["s3"], "scratch_size": "200G", "node_selector": {"pool": "cpu"}}}),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_manifests(name: str) -> None:
    spec, cluster = CASES[name]
    assert_golden(name, KubernetesLauncher(cluster).render(spec).text)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_kubernetes_takes_them_as_they_are_shown_and_as_they_are_submitted(name: str, version: str) -> None:
    spec, cluster = CASES[name]
    shown = list(yaml.safe_load_all(KubernetesLauncher(cluster).render(spec).text))
    checked = 0
    for manifest in (*shown, *(owned(each, owner=OWNER) for each in shown[1:])):
        if manifest["kind"] != "PodGroup":  # another project's kind
            kubernetes_validate.validate(manifest, version, strict=True)
            checked += 1
    assert checked == 1 + 2 * spec.num_nodes


def test_the_schemas_would_find_a_misspelt_field() -> None:
    service, *_ = manifests(job_of(), cluster_of(PLAIN))
    with pytest.raises(kubernetes_validate.ValidationError, match="publishNotReady"):
        kubernetes_validate.validate({**service, "spec": {**service["spec"], "publishNotReady": True}}, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", CASES)
def test_every_pod_is_as_safe_as_it_can_be(name: str) -> None:
    for pod in pods_of(*CASES[name]):
        (container,) = pod["spec"]["containers"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def test_the_first_pod_comes_last_and_says_so_to_nobody_else() -> None:
    first, second, *rest = manifests(job_of(num_nodes=3), cluster_of(PLAIN))
    assert first["kind"] == "Service"
    ranks = [pod["spec"]["containers"][0]["command"] for pod in (second, *rest)]
    assert [command[command.index("--node-rank") + 1] for command in ranks] == ["2", "1", "0"]


def test_what_is_submitted_belongs_to_its_owner_and_carries_its_uid() -> None:
    service, *pods = manifests(job_of(), cluster_of(PLAIN))
    for pod in pods:
        (reference,) = owned(pod, owner=OWNER)["metadata"]["ownerReferences"]
        assert (reference["kind"], reference["uid"], reference["name"]) == ("Service", "f3a1", service["metadata"]["name"])
        assert owned(pod, owner=OWNER)["spec"]["containers"][0]["command"][-2:] == ["--submission", "f3a1"]
        assert "--submission" not in pod["spec"]["containers"][0]["command"]


def test_kubernetes_waits_longer_than_ranks_may_take_for_their_last_checkpoint() -> None:
    spec = job_of(grace_s=120.5)
    assert [pod["spec"]["terminationGracePeriodSeconds"] for pod in pods_of(spec, cluster_of(PLAIN))] == [151, 151]
    assert grace_s(spec) > spec.grace_s


def test_ranks_get_the_time_that_they_were_seen_to_need(tmp_path: Path) -> None:
    """Half again as long as a step, a validation and two saves have taken."""
    storage, layout = FileStorage(tmp_path), ArtifactLayout("train/x")
    spec = job_of(artifact_key="train/x", attempt=0, grace_s=10.0)
    attempt = layout.attempt("", 0)
    storage.create_exclusive(attempt.spec, canonical_json(spec))
    figures = {"step_s": 4.0, "validation_s": 6.0, "checkpoint_write_s": 15.0}
    progress = RankProgress(rank=0, pid=1, phase=RankPhase.STEPPING, step=1, committed_step=0, total_steps=9, at=1.0, figures=figures)
    beat = Heartbeat(key="k", node_rank=0, host="h", agent_pid=1, epoch=0, sequence=0, at=1.0, ranks=(progress,))
    storage.create_exclusive(attempt.heartbeat(0, 0), canonical_json(beat))
    following = next_attempt(spec, number=1, storage=storage, now=0.0)
    assert following.measured_stop_s == 1.5 * (4 + 6 + 2 * 15)
    (pod, _) = pods_of(following, cluster_of(PLAIN))
    command = pod["spec"]["containers"][0]["command"]
    assert (command[command.index("--grace") + 1], pod["spec"]["terminationGracePeriodSeconds"]) == ("60", 90)
    assert next_attempt(job_of(artifact_key="train/y"), number=0, storage=storage, now=0.0).measured_stop_s == 0.0


def test_a_time_limit_is_also_kubernetes_own_but_never_sooner() -> None:
    (pod, _) = pods_of(job_of(time_limit_s=600.0), cluster_of(PLAIN))
    assert pod["spec"]["activeDeadlineSeconds"] == 660
    (pod, _) = pods_of(job_of(), cluster_of(PLAIN))
    assert "activeDeadlineSeconds" not in pod["spec"]


@pytest.mark.parametrize(("state", "mounted"), [("/shared/state", False), ("/var/lib/headrace/state", True)])
def test_a_folder_of_the_pods_own_stands_in_for_state_that_is_on_no_volume(state: str, mounted: bool) -> None:
    (pod, _) = pods_of(job_of(scratch_dir=f"{state}/scratch/{KEY}"), cluster_of(PLAIN))
    paths = [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]]
    assert (f"{state}/scratch" in paths) == mounted
    assert {"/dev/shm", "/tmp"} <= set(paths)


def test_words_of_the_command_are_not_replaced_by_kubernetes() -> None:
    (pod, _) = pods_of(job_of(storage_root="/shared/$(HOME)"), cluster_of(PLAIN))
    assert "/shared/$$(HOME)" in pod["spec"]["containers"][0]["command"]


def test_pods_leave_a_silent_machine_when_their_run_would_give_it_up() -> None:
    (pod, _) = pods_of(job_of(lost_after_s=45.0), cluster_of(PLAIN))
    assert [each["tolerationSeconds"] for each in pod["spec"]["tolerations"]] == [45, 45]


def test_a_stage_has_its_own() -> None:
    cluster = cluster_of(PLAIN, kubernetes={"priority_class": "low", "stages": {"train": {"priority_class": "high"}}})
    classes = {stage: pods_of(job_of(stage=stage), cluster)[0]["spec"]["priorityClassName"] for stage in (Stage.TRAIN, Stage.EXPORT)}
    assert classes == {Stage.TRAIN: "high", Stage.EXPORT: "low"}


@pytest.mark.parametrize(
    ("size", "scratch", "root", "says"),
    [
        ("1G", f"/shared/state/scratch/{KEY}", "/shared/data", "has no effect"),
        ("40G", f"/state/scratch/{KEY}", "s3://bucket/data", "has no room for copies of object storage"),
        ("1G", f"/state/scratch/{KEY}", "/shared/data", ""),
        ("50G", f"/state/scratch/{KEY}", "s3://bucket/data", ""),
    ],
)
def test_a_size_for_scratch_holds_what_the_recipe_puts_there(size: str, scratch: str, root: str, says: str) -> None:
    spec = job_of(scratch_dir=scratch, storage_root=root, cache_bytes=50_000_000_000)
    found = request_problems(spec, cluster_of(PLAIN, kubernetes={"scratch_size": size}))
    assert [(problem.key, says in problem.message) for problem in found] == ([("cluster.kubernetes.scratch_size", True)] if says else [])


@pytest.mark.parametrize(
    ("section", "given"),
    [
        ({}, False),
        ({"env": {"AWS_ENDPOINT_URL": "https://s3.example.com"}}, False),
        ({"pod_patch": {"spec": {"containers": [{"name": "agent", "resources": {"limits": {"rdma/hca": "1"}}}]}}}, False),
        ({"secrets": ["s3"]}, True),
        ({"service_account": "ranks"}, True),
        ({"env": {"AWS_PROFILE": "ranks"}}, True),
        ({"pod_patch": {"spec": {"containers": [{"name": "agent", "envFrom": [{"secretRef": {"name": "s3"}}]}]}}}, True),
    ],
)
def test_where_agents_get_credentials_from_is_known_or_not(section: dict[str, Any], given: bool) -> None:
    assert has_credentials(cluster_of(PLAIN, kubernetes=section).kubernetes.pods(Stage.TRAIN)) is given


def test_all_that_no_cluster_would_take_is_said_at_once() -> None:
    cluster = ClusterConfig.model_validate(
        {"kind": "kubernetes", "kubernetes": {"pod_patch": {"spec": {"restartPolicy": "Always", "hostNetwrk": True}}}}
    )
    with pytest.raises(ConfigError) as caught:
        KubernetesLauncher(cluster).render(job_of())
    told = {(problem.key, problem.nearest) for problem in caught.value.problems}
    assert told == {
        ("cluster.image", ""),
        ("storage.root", ""),
        ("cluster.kubernetes.pod_patch.spec.restartPolicy", ""),
        ("cluster.kubernetes.pod_patch.spec.hostNetwrk", "hostNetwork"),
    }


def pods_of(spec: JobSpec, cluster: ClusterConfig) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests(spec, cluster) if manifest["kind"] == "Pod"]
