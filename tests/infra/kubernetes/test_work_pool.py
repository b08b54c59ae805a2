"""What Prefect's own worker makes of our base job template: a Job that current schemas take, that is restricted, and that has no secret."""

import asyncio
import uuid
from typing import Any
from unittest.mock import Mock

import kubernetes_validate
import prefect
import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow, FlowRun
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

from cluster.launchers.kubernetes_manifest import manifests
from cluster.launchers.kubernetes_request import request_problems
from flows.deployment import base_job_template
from schemas.errors import InputError
from schemas.recipe import load_recipe
from tasks.planned_jobs import planned_jobs
from tests.fakes.golden import assert_golden
from tests.fakes.kubernetes_site import BASE, KUBERNETES
from tests.fakes.tiny_pipeline import ROOT

Json = dict[str, Any]
TEMPLATE = KUBERNETES / "base-job-template.yaml"


def job(**variables: Any) -> Json:
    """Returns the Job of a flow run, as the worker creates it."""
    client = Mock(spec=PrefectClient)  # asked for blocks and variables, of which there are none
    template = base_job_template(TEMPLATE)
    defaults = {name: each["default"] for name, each in template["variables"]["properties"].items() if "default" in each}
    configuration = asyncio.run(KubernetesWorkerJobConfiguration.from_template_and_values(template, {**defaults, **variables}, client=client))
    configuration.env = {}  # the worker's own settings
    flow_run = FlowRun(id=uuid.UUID(int=1), flow_id=uuid.UUID(int=2), name="quick-fox")
    configuration.prepare_for_flow_run(flow_run, flow=Flow(id=uuid.UUID(int=2), name="pretrain"))
    made: Json = configuration.job_manifest
    for name in ("parallelism", "completions"):  # Prefect wants them there, and the API server drops them
        assert made["spec"]["template"]["spec"].pop(name) == 1
    return made


def test_the_job() -> None:
    made = job()
    container = made["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [each for each in container["env"] if not each["name"].startswith(("PREFECT_API", "PREFECT_SERVER", "PREFECT_LOG"))]
    text = yaml.safe_dump(made, sort_keys=False)
    for version in ("1.30", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(made, version, strict=True)
    assert_golden("kubernetes_flow_job.yaml", text.replace(prefect.__version__, "VERSION"))


def test_a_deployment_changes_what_the_variables_name() -> None:
    mounts = {"volumes": [{"name": "tmp", "emptyDir": {}}], "volume_mounts": [{"name": "tmp", "mountPath": "/tmp"}]}
    spec = job(image="x:1", memory="1Gi", finished_job_ttl=5, node_selector={"pool": "cpu"}, **mounts)["spec"]
    pod = spec["template"]["spec"]
    assert (spec["ttlSecondsAfterFinished"], pod["nodeSelector"], pod["volumes"]) == (5, {"pool": "cpu"}, mounts["volumes"])
    assert (pod["containers"][0]["image"], pod["containers"][0]["resources"]["limits"]) == ("x:1", {"memory": "1Gi"})


def test_every_variable_has_an_effect() -> None:
    """None is without effect, and none that the template wants is missing."""
    template = base_job_template(TEMPLATE)
    text = yaml.safe_dump(template["job_configuration"])
    left_out = {"cluster_config", "job_watch_timeout_seconds", "pod_watch_timeout_seconds", "stream_output"}  # the last three have no effect
    wanted = set(KubernetesWorker.get_default_base_job_template()["job_configuration"]) - left_out
    assert template["job_configuration"].keys() == wanted, "no kubeconfig: it would lie in Prefect's database"
    assert {name for name in template["variables"]["properties"] if f"{{{{ {name} }}}}" not in text} == set()
    assert text.count("{{") == sum(text.count(f"{{{{ {name} }}}}") for name in template["variables"]["properties"])


@pytest.mark.parametrize(("text", "why"), [("a: [", "YAML"), ("job_configuration: {}", "two keys"), ("- x", "two keys")])
def test_a_template_that_is_none_is_refused(tmp_path: Any, text: str, why: str) -> None:
    file = tmp_path / "template.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        base_job_template(file)
    assert why in f"{error.value.what} {error.value.why}"
    with pytest.raises(InputError, match="does not exist"):
        base_job_template(tmp_path / "none.yaml")


def test_the_shipped_deployment_fits_the_template_the_site_and_the_launcher() -> None:
    described = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())["deployments"]
    (deployment,) = [each for each in described if each["work_pool"]["name"] == "headrace-kubernetes"]
    variables = base_job_template(TEMPLATE)["variables"]["properties"]
    pool = deployment["work_pool"]
    assert ROOT / "infra" / pool["base_job_template"] == TEMPLATE
    assert pool["job_variables"].keys() <= variables.keys()
    loaded = load_recipe(ROOT / deployment["parameters"]["recipe"], deployment["parameters"]["overrides"])
    config = loaded.config
    for spec in planned_jobs(config, storage_root=config.storage.root, project_dir=ROOT).values():
        assert request_problems(spec, config.cluster) == []
        for manifest in manifests(spec, config.cluster):
            kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    (volume,) = config.cluster.kubernetes.volumes
    flow = {each["mountPath"]: each["name"] for each in variables["volume_mounts"]["default"]}
    claims = {each["name"]: each.get("persistentVolumeClaim", {}).get("claimName") for each in variables["volumes"]["default"]}
    assert claims[flow[volume.mount]] == volume.claim, "who decides and who computes see one storage, at one place"
    objects = [each for file in BASE.glob("*.yaml") for each in yaml.safe_load_all(file.read_text())]
    named = {(each["kind"], each["metadata"]["name"]) for each in objects if "metadata" in each}
    accounts = (config.cluster.kubernetes.service_account, variables["service_account_name"]["default"])
    assert {*(("ServiceAccount", name) for name in accounts), ("Namespace", config.cluster.namespace)} <= named
    assert variables["namespace"]["default"] == config.cluster.namespace
    (control,) = [each for each in yaml.safe_load((BASE / "kustomization.yaml").read_text())["images"] if each["name"] == "headrace-control"]
    assert {pool["job_variables"]["image"], variables["image"]["default"]} == {f"{control['newName']}:{control['newTag']}"}
