"""What happens to the control plane, and what it refuses: silence is no end, a full quota no failure, a refusal for good the recipe's problem."""

import re
import threading
from pathlib import Path

import pytest
import yaml

from cluster.launchers.kubernetes_api import connect
from cluster.launchers.kubernetes_name import job_name
from flows.checkup_kubernetes import NEEDED, check_rights
from schemas.errors import ConfigError
from tests.chaos.kubernetes_trouble import Place, record_of, went_through, works
from tests.fakes.live_job import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.kubernetes]

exhaustive = pytest.mark.exhaustive
ROOT = Path(__file__).resolve().parents[3]
_LOST_AFTER_S, _AWAY_S = 10.0, 12.0


@exhaustive
@pytest.mark.parametrize("name", ["kube-apiserver", "etcd"])
def test_a_control_plane_that_is_away_for_a_while_touches_no_running_job(here: Place, name: str) -> None:
    """Longer than `lost_after`: what nobody can ask about is neither ended nor started again."""
    job = here.job(lost_after_s=_LOST_AFTER_S).lasting()
    back = threading.Timer(_AWAY_S, lambda: (here.lab.start(name), job.let_go()))

    def take_away() -> None:
        here.lab.kill(name)
        back.start()

    job.when(works, take_away)
    record = job.run()
    back.join()
    went_through(job, record, here, attempts=[0])
    assert record_of(job, 0).incidents == ()


@exhaustive
def test_a_full_quota_is_waited_for(here: Place) -> None:
    here.limit(pods="2")
    blocker = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "blocker"},
        "spec": {"nodeSelector": {"a": "b"}, "containers": [{"name": "x", "image": "host"}]},
    }
    here.api.call("POST", here.api.objects("pods"), body=blocker)
    job = here.job(options={"steps": 20})
    timer = threading.Timer(5.0, lambda: here.api.call("DELETE", here.api.objects("pods", "blocker")))
    timer.start()
    record = job.run()
    timer.join()
    went_through(job, record, here, attempts=[0])


@exhaustive
def test_a_quota_that_is_too_small_for_the_job_is_said_at_once(here: Place) -> None:
    here.limit(pods="1")
    with pytest.raises(ConfigError, match=r"cluster\.nodes.*quota limit of the namespace allows"):
        here.job().run()
    wait_until(here.is_empty)


@exhaustive
def test_a_name_that_a_stranger_has_is_left_to_him(here: Place) -> None:
    launcher, spec = here.launcher(), here.job().request.model_copy(update={"key": "run-train-000000"})
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": job_name(spec.key)}, "spec": {"clusterIP": "None"}}
    here.api.call("POST", here.api.objects("services"), body=service)
    with pytest.raises(ConfigError, match="not of this job"):
        launcher.submit(launcher.render(spec))
    assert [each["metadata"]["name"] for each in here.objects("services")] == [job_name(spec.key)]


@exhaustive
def test_the_rights_that_the_documents_name_are_enough_and_doctor_misses_each_of_them(here: Place) -> None:
    api = here.connect(str(here.lab.service_account("default", namespace=here.name)))
    (missing,) = check_rights(api, here.cluster())
    assert missing["level"] == "error"
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs/operations/kubernetes.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (role,) = (block for block in map(yaml.safe_load, blocks) if block.get("kind") == "Role")
    rights = {(rule["apiGroups"][0], resource): tuple(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert rights == NEEDED
    assert all(f"{verb} {resource}" in missing["what"] for (_, resource), verbs in rights.items() for verb in verbs)
    group = f"apis/{role['apiVersion']}"
    here.api.call("POST", here.api.objects("roles", group=group), body={**role, "metadata": {"name": "headrace"}})
    binding = {
        "apiVersion": role["apiVersion"],
        "kind": "RoleBinding",
        "metadata": {"name": "headrace"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "headrace"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": here.name}],
    }
    here.api.call("POST", here.api.objects("rolebindings", group=group), body=binding)
    wait_until(lambda: check_rights(api, here.cluster())[0]["level"] == "ok")
    job = here.job(api=api, options={"steps": 20})
    went_through(job, job.run(), here, attempts=[0])


@exhaustive
def test_a_user_without_rights_is_told_so(here: Place) -> None:
    kubeconfig = here.lab.service_account("default", namespace=here.name)
    with pytest.raises(ConfigError, match=r"cluster\.namespace.*cannot (create|get) resource"):
        here.job(api=here.connect(str(kubeconfig))).run()
    assert here.is_empty()


@exhaustive
def test_a_namespace_that_is_not_there_is_told_with_the_nearest(here: Place) -> None:
    cluster = here.cluster(kubeconfig=str(here.lab.kubeconfig)).model_copy(update={"namespace": f"{here.name}x"})
    with pytest.raises(ConfigError) as caught:
        here.job(cluster=cluster, api=connect(cluster)).run()
    (problem,) = caught.value.problems
    assert (problem.key, problem.nearest) == ("cluster.namespace", here.name)
