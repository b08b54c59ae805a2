"""What happens to pods and machines on a real cluster: whatever it is, one attempt takes effect, and nothing is left."""

import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
import yaml

from cluster.attempt import read_verdict
from cluster.launchers.protocol import JobState
from schemas.attempt import Cause
from schemas.exit_code import ExitCode
from tests.chaos.kubernetes_trouble import PATIENCE_S, Place, hosts, record_of, went_through, works
from tests.fakes.job_request import array_request
from tests.fakes.live_job import LiveJob, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.kubernetes]

exhaustive = pytest.mark.exhaustive


def test_a_gang_on_two_machines_meets_works_and_leaves_nothing(here: Place) -> None:
    job = here.job(options={"steps": 20})
    went_through(job, job.run(), here, attempts=[0])
    assert len(hosts(job, 0)) == 2
    assert all(host.startswith("node") for host in hosts(job, 0)), "a machine's name, which a pod does not know by itself"


@exhaustive
@pytest.mark.parametrize("node_rank", [0, 1])
def test_after_a_machine_has_lost_power_the_next_attempt_runs_on_those_that_are_left(here: Place, node_rank: int) -> None:
    job, lost = here.job().lasting(), list[str]()

    def power_off() -> None:
        lost.append(here.pod(node_rank)["spec"]["nodeName"])
        here.lab.kill(lost[0])

    job.when(works, power_off)
    went_through(job, job.run(), here, attempts=[0, 1])
    assert Cause.HANG not in {incident.cause for incident in record_of(job, 0).incidents}
    assert lost[0] not in hosts(job, 1)
    verdict = read_verdict(job.storage, job.attempt(0))
    assert verdict is not None
    assert verdict.reason.startswith("node: restart")


@exhaustive
def test_machines_that_are_better_avoided_are(here: Place) -> None:
    """By name, as their agents called them."""
    job = here.job(num_nodes=1)
    launcher, *avoided = here.launcher(), "node1", "node3"
    spec = job.request.model_copy(update={"key": "run-train-000000", "excluded_nodes": tuple(avoided)})
    launcher.submit(launcher.render(spec))
    wait_until(lambda: here.pod(0)["spec"].get("nodeName") == "node2")
    launcher.cancel(spec.key)
    wait_until(here.is_empty)


@exhaustive
def test_items_of_an_array_are_shared_by_pods(here: Place) -> None:
    request = array_request(here.folder, items=12, num_nodes=2, lost_after_s=60.0, options={"item_s": 0.2})
    job = LiveJob(request, launcher=here.launcher(), patience_s=PATIENCE_S)
    assert job.run().exit_code is ExitCode.DONE
    assert len(job.storage.names(f"{request.artifact_key}/items")) == 12
    assert len(hosts(job, 0)) == 2
    wait_until(here.is_empty)


@exhaustive
def test_a_pod_that_uses_too_much_memory_is_said_to_have(here: Place) -> None:
    """Its container's limit, and all that is in it: nobody is left to leave an exit record."""
    greedy = f"import time; data = b'x' * {400 << 20}; time.sleep(60)"
    cluster = here.cluster().model_copy(update={"memory": "200M"})
    launcher, spec = here.launcher(cluster=cluster), here.job(num_nodes=1).request.model_copy(update={"key": "run-train-000000"})
    submission = launcher.render(spec)
    launcher.submit(replace(submission, text=replace_command(submission.text, [sys.executable, "-c", greedy])))
    wait_until(lambda: launcher.query([spec.key])[spec.key].state is JobState.ENDED)
    report = launcher.query([spec.key])[spec.key]
    assert (report.cause, "OOMKilled" in report.told) == (Cause.OUT_OF_MEMORY, True)
    launcher.release(spec.key)
    wait_until(here.is_empty)


def replace_command(text: str, command: list[str]) -> str:
    """Returns manifests whose pods run something else."""
    documents = list(yaml.safe_load_all(text))
    for document in documents:
        for container in document["spec"].get("containers", ()):
            container["command"] = command
    return yaml.safe_dump_all(documents)


def delete(here: Place, pod: dict[str, Any]) -> None:
    here.api.call("DELETE", here.api.objects("pods", pod["metadata"]["name"]))


def evict(here: Place, pod: dict[str, Any]) -> None:
    here.lab.evict(pod["spec"]["nodeName"], namespace=here.name, pod=pod["metadata"]["name"])


@exhaustive
@pytest.mark.parametrize("node_rank", [0, 1])
@pytest.mark.parametrize("end", [delete, evict])
def test_a_pod_that_is_taken_away_commits_and_the_next_attempt_goes_on(here: Place, end: Any, node_rank: int) -> None:
    job = here.job().lasting()
    job.when(works, lambda: end(here, here.pod(node_rank)))
    went_through(job, job.run(), here, attempts=[0, 1])
    assert {incident.cause for incident in record_of(job, 0).incidents} <= {Cause.PREEMPTION, Cause.NODE}


@exhaustive
def test_two_supervisors_at_once_make_one_job(here: Place) -> None:
    first, second = here.job().lasting(), here.job().lasting()
    thread = threading.Thread(target=second.run)
    second.when(works, first.let_go)
    first.when(works, thread.start)
    record = first.run()
    thread.join()
    went_through(first, record, here, attempts=[0])


class KilledError(Exception):
    """Stands for the end of a supervisor's process."""


@exhaustive
def test_a_supervisor_without_a_memory_adopts(here: Place) -> None:
    def die() -> None:
        raise KilledError

    job, again = here.job().lasting(), here.job().lasting()
    job.when(works, die)
    with pytest.raises(KilledError):
        job.run()
    again.when(works, again.let_go)
    went_through(again, again.run(), here, attempts=[0])


def waits_for(here: Place, job: LiveJob, words: str) -> None:
    """The job waits, says why, and goes when it is asked to."""
    seen: list[str] = []
    job.when(lambda view: view.job is not None and words in view.job.told, lambda: seen.append(words))
    job.run(stop_requested=lambda: bool(seen))
    assert seen
    wait_until(here.is_empty)


@exhaustive
def test_an_image_that_is_not_there_is_told_and_a_wish_to_stop_ends_the_wait(here: Place) -> None:
    cluster = here.cluster().model_copy(update={"image": "no-such-image:1"})
    waits_for(here, here.job(cluster=cluster), "its image cannot be fetched")


@exhaustive
def test_a_job_that_fits_nowhere_says_so(here: Place) -> None:
    waits_for(here, here.job(cluster=here.cluster(node_selector={"pool": "none"})), "no machine fits: 0/3 nodes are available")
