"""The launcher against a server that misbehaves on demand: what is created, taken over, refused, removed, and what is said of it."""

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.launchers.kubernetes import KubernetesLauncher
from cluster.launchers.kubernetes_name import job_name, pod_name
from cluster.launchers.protocol import JobReport, JobState, NoRoomError
from schemas.attempt import Cause
from schemas.cluster_config import ClusterConfig
from schemas.errors import ConfigError, UnreachableError
from tests.fakes.kubernetes_api import FakeApi, Fault, api_at, kubernetes_speaking
from tests.fakes.kubernetes_job import KEY, PLAIN, cluster_of, job_of

NAME, PODS = job_name(KEY), [pod_name(KEY, rank) for rank in (0, 1)]
ALL = [("pods", PODS[0]), ("pods", PODS[1]), ("services", NAME)]
GPUS = "requests.nvidia.com/gpu"
QUOTA = f'pods "x" is forbidden: exceeded quota: gpus, requested: {GPUS}={{asked}}, used: {GPUS}=4, limited: {GPUS}=8'


class Lab:
    """A server, and launchers that speak to it."""

    def __init__(self, fake: FakeApi, url: str) -> None:
        self.fake, self.url, self.launchers = fake, url, []
        self.launcher = self.another()

    def another(self, *, cluster: ClusterConfig | None = None, answer_s: float = 5.0) -> KubernetesLauncher:
        launcher = KubernetesLauncher(cluster or cluster_of(PLAIN), api=api_at(self.url, answer_s=answer_s))
        self.launchers.append(launcher)
        return launcher

    def submit(self, **changes: Any) -> None:
        self.launcher.submit(self.launcher.render(job_of(**changes)))

    def run(self) -> None:
        """Places all pods, and starts them."""
        for pod in self.fake.pods():
            self.fake.put("pods", {**pod, "spec": {**pod["spec"], "nodeName": f"m{pod['metadata']['labels']['headrace/node-rank']}"}})
            self.fake.status(pod["metadata"]["name"], phase="Running")

    def report(self, launcher: KubernetesLauncher | None = None) -> JobReport:
        return (launcher or self.another()).query([KEY])[KEY]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with kubernetes_speaking() as (fake, url):
        lab = Lab(fake, url)
        yield lab
        for launcher in lab.launchers:
            launcher.close()


# ---- submitting -----------------------------------------------------------------------------------------------------------


def test_a_job_is_a_service_and_the_pods_that_it_owns(lab: Lab) -> None:
    lab.submit()
    assert lab.fake.kinds() == ALL
    uid = lab.fake.objects["services", NAME]["metadata"]["uid"]
    for pod in lab.fake.pods():
        assert [owner["uid"] for owner in pod["metadata"]["ownerReferences"]] == [uid]
        assert pod["spec"]["containers"][0]["command"][-2:] == ["--submission", uid]
    assert lab.report() == JobReport(JobState.PENDING, job_id=NAME, told="Pending (0 of 2 pods run)")


def test_a_second_submission_takes_over_what_is_there(lab: Lab) -> None:
    lab.submit()
    before = lab.fake.version
    another = lab.another()
    assert another.submit(another.render(job_of())).job_id == NAME
    assert lab.fake.version == before


@pytest.mark.parametrize("created", [0, 1, 2])
@pytest.mark.parametrize("after", [False, True], ids=["before it was taken", "its answer lost"])
def test_what_was_begun_is_completed_by_the_next_submission(lab: Lab, created: int, after: bool) -> None:
    """The server dies before or after it has taken the Service, the first or the second pod."""
    lab.fake.faults.append(Fault("POST", "pods" if created else "services", skip=max(0, created - 1), after=after))
    with pytest.raises(UnreachableError, match="did not take job"):
        lab.submit()
    first_is_there = ("pods", PODS[0]) in lab.fake.objects
    assert (lab.report().state is JobState.ABSENT) == (not first_is_there)
    lab.submit()
    assert lab.fake.kinds() == ALL
    assert len({owner["uid"] for pod in lab.fake.pods() for owner in pod["metadata"]["ownerReferences"]}) == 1


@pytest.mark.parametrize(("kind", "name"), [("services", NAME), ("pods", PODS[1]), ("pods", PODS[0])])
def test_a_name_that_a_stranger_has_is_not_taken_from_him(lab: Lab, kind: str, name: str) -> None:
    lab.fake.put(kind, {"kind": "Pod" if kind == "pods" else "Service", "metadata": {"name": name}})
    with pytest.raises(ConfigError, match=f"{name} is there already, and not of this job"):
        lab.submit()
    lab.launcher.cancel(KEY)
    assert (kind, name) in lab.fake.objects


def test_a_job_that_is_still_being_removed_is_waited_for(lab: Lab) -> None:
    lab.submit()
    lab.run()
    lab.launcher.cancel(KEY)
    lab.fake.remove("pods", PODS[0])
    with pytest.raises(NoRoomError, match="still being removed"):
        lab.submit()


def test_a_full_quota_is_waited_for_and_what_it_gave_is_given_back(lab: Lab) -> None:
    lab.fake.faults.append(Fault("POST", "pods", 403, "Forbidden", QUOTA.format(asked=4)))
    with pytest.raises(NoRoomError, match=r"quota gpus of the namespace: requests.nvidia.com/gpu=4 of requests.nvidia.com/gpu=8 are in use"):
        lab.submit()
    assert lab.fake.kinds() == []
    lab.submit()
    assert lab.fake.kinds() == ALL


def test_a_quota_that_the_job_alone_exceeds_is_the_recipes_problem(lab: Lab) -> None:
    lab.fake.faults.append(Fault("POST", "pods", 403, "Forbidden", QUOTA.format(asked=5)))
    with pytest.raises(ConfigError) as caught:
        lab.submit()
    (problem,) = caught.value.problems
    assert (problem.key, problem.nearest) == ("cluster.gpus_per_node", "8")


def test_a_full_quota_does_not_hide_what_is_there(lab: Lab) -> None:
    """Quotas are asked before names: a running job's second submission must neither fail nor remove it."""
    lab.submit()
    lab.fake.faults.append(Fault("POST", ".*", 403, "Forbidden", QUOTA.format(asked=4), times=9))
    lab.submit()
    assert lab.fake.kinds() == ALL


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        (
            Fault("POST", "services", 403, "Forbidden", 'services is forbidden: User "me" cannot create resource "services" in API group ""'),
            "cluster.namespace",
        ),
        (Fault("POST", "services", 404, "NotFound", 'namespaces "trianing" not found'), "cluster.namespace"),
        (
            Fault("POST", "pods", 403, "Forbidden", 'error looking up service account lab/x: serviceaccount "x" not found'),
            "cluster.kubernetes.service_account",
        ),
        (Fault("POST", "pods", 403, "Forbidden", "no PriorityClass with name high was found"), "cluster.kubernetes.priority_class"),
        (Fault("POST", "pods", 403, "Forbidden", "maximum memory usage per Pod is 1Gi, but limit is 2Gi"), "cluster.memory"),
        (Fault("POST", "pods", 403, "Forbidden", 'violates PodSecurity "restricted:latest": hostPath volumes'), "cluster.kubernetes"),
        (Fault("POST", "pods", 400, "BadRequest", 'strict decoding error: unknown field "spec.x"'), "cluster.kubernetes.pod_patch"),
        (Fault("POST", "pods", 400, "BadRequest", 'admission webhook "policy" denied the request: no'), "cluster.kubernetes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refusal_for_good_names_the_key_and_leaves_nothing(lab: Lab, fault: Fault, key: str) -> None:
    lab.fake.faults.append(fault)
    with pytest.raises(ConfigError) as caught:
        lab.submit()
    (problem,) = caught.value.problems
    assert problem.key == key
    assert problem.message == fault.message
    assert lab.fake.kinds() == []


def test_all_that_is_invalid_is_told_at_once(lab: Lab) -> None:
    causes = [{"field": "spec.a", "message": "bad"}, {"field": "spec.b", "message": "worse"}]
    lab.fake.faults.append(Fault("POST", "pods", 422, "Invalid", "Pod is invalid", details={"causes": causes}))
    with pytest.raises(ConfigError) as caught:
        lab.submit()
    assert [problem.message for problem in caught.value.problems] == ["spec.a: bad", "spec.b: worse"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", "pods", 503, "ServiceUnavailable", "not now"),
        Fault("POST", "pods", 500, "InternalError", "etcdserver: request timed out"),
        Fault("POST", "pods", 429, "TooManyRequests", "slow down"),
        Fault("POST", "services", 401, "Unauthorized", "Unauthorized"),
        Fault("POST", "pods", 409, "Conflict", 'Operation cannot be fulfilled on resourcequotas "q"'),
        Fault("POST", "pods"),
    ],
    ids=["not well", "etcd", "too many", "credentials expired", "conflict", "connection lost"],
)
def test_a_failure_that_may_pass_is_no_refusal(lab: Lab, fault: Fault) -> None:
    lab.fake.faults.append(fault)
    with pytest.raises(UnreachableError, match="did not take job") as caught:
        lab.submit()
    assert not isinstance(caught.value, NoRoomError)
    lab.submit()
    assert lab.fake.kinds() == ALL


def test_a_server_that_hangs_is_given_up(lab: Lab) -> None:
    lab.fake.faults.append(Fault("POST", "services", hangs=True))
    launcher = lab.another(answer_s=0.2)
    with pytest.raises(UnreachableError, match="did not take job"):
        launcher.submit(launcher.render(job_of()))


# ---- what is said of jobs -------------------------------------------------------------------------------------------------


def test_a_server_that_does_not_answer_says_nothing_about_any_job(lab: Lab) -> None:
    lab.submit()
    lab.fake.faults.append(Fault("GET", "pods", 503, times=99))
    answers = lab.another().query([KEY, "other"])
    assert {key: report.state for key, report in answers.items()} == {KEY: JobState.UNKNOWN, "other": JobState.UNKNOWN}


def test_credentials_that_may_not_list_know_nothing_either(lab: Lab) -> None:
    lab.fake.faults.append(Fault("GET", "pods", 403, "Forbidden", "no"))
    assert lab.report().state is JobState.UNKNOWN


def test_a_gang_waits_until_all_of_it_runs_and_says_why(lab: Lab) -> None:
    lab.submit()
    lab.fake.status(PODS[0], phase="Running")
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient cpu."}
    lab.fake.status(PODS[1], phase="Pending", conditions=[unschedulable])
    report = lab.report()
    assert (report.state, report.held) == (JobState.PENDING, False)
    assert report.told == f"Pending (1 of 2 pods run; {PODS[1]}: no machine fits: 0/3 nodes are available: 3 Insufficient cpu.)"
    lab.run()
    assert lab.report() == JobReport(JobState.RUNNING, job_id=NAME, told="Running", nodes="m0,m1")


def test_a_part_that_is_lost_is_told_while_the_rest_runs(lab: Lab) -> None:
    lab.submit()
    lab.run()
    lab.fake.status(PODS[1], phase="Failed", reason="Evicted", message="low on memory")
    report = lab.report()
    assert report.state is JobState.RUNNING
    assert report.broken == f"{PODS[1]}: Evicted: low on memory"
    lab.fake.status(PODS[0], phase="Succeeded")
    report = lab.report()
    assert (report.state, report.cause, report.broken) == (JobState.ENDED, Cause.PREEMPTION, "")


# ---- ending -----------------------------------------------------------------------------------------------------------------


def test_cancelling_asks_pods_to_end_and_leaves_nothing(lab: Lab) -> None:
    lab.submit()
    lab.run()
    lab.another().cancel(KEY)
    assert all("deletionTimestamp" in pod["metadata"] for pod in lab.fake.pods())
    assert ("services", NAME) in lab.fake.objects  # its names are needed until the last pod has ended
    assert lab.fake.objects["services", NAME]["metadata"]["deletionTimestamp"]


def test_pods_that_were_never_placed_are_gone_at_once(lab: Lab) -> None:
    lab.submit()
    lab.another().cancel(KEY)
    assert lab.fake.kinds() == []
    assert lab.report().state is JobState.ABSENT


def test_cancelling_what_is_not_there_is_nothing_and_a_silent_server_is_no_error(lab: Lab) -> None:
    lab.launcher.cancel("no-such-job")
    lab.fake.faults.append(Fault("GET", "services", 503))
    lab.launcher.cancel(KEY)


def test_releasing_removes_what_is_over_and_gives_up_what_is_lost(lab: Lab) -> None:
    lab.submit()
    lab.run()
    lab.fake.status(PODS[0], phase="Succeeded")
    lost = lab.fake.objects["pods", PODS[1]]
    silent = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [{"state": {"running": {}}}]}
    lab.fake.put("pods", {**lost, "metadata": {**lost["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": silent})
    report = lab.report()
    assert (report.state, report.cause) == (JobState.ENDED, Cause.NODE)
    launcher = lab.another()
    launcher.release(KEY)
    assert ("pods", PODS[1]) not in lab.fake.objects
    launcher.release(KEY)


def test_nothing_secret_is_in_what_is_shown_or_said(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    from kubernetes.client import Configuration

    from cluster.launchers.kubernetes_api import Api

    configuration = Configuration()
    configuration.host, configuration.api_key = lab.url, {"BearerToken": "Bearer hunter2"}
    launcher = KubernetesLauncher(cluster_of(PLAIN), api=Api(configuration, namespace="lab", answer_s=0.2))
    lab.fake.faults += [Fault("GET", "pods", 401, "Unauthorized", "Unauthorized"), Fault("GET", "pods", hangs=True)]
    submission = launcher.render(job_of())
    told = []
    for _ in range(2):
        with pytest.raises(UnreachableError) as caught:
            launcher.submit(submission)
        told.append(str(caught.value))
    launcher.query([KEY])
    launcher.close()
    assert "hunter2" not in submission.text + "".join(told) + caplog.text
