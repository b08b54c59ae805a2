"""The Slurm worker: what it submits, what it does when Slurm refuses, is silent or has taken a job already, and how jobs are ended."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import Flow, FlowRun, StateType
from prefect.exceptions import InfrastructureNotAvailable, InfrastructureNotFound
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.states import Scheduled, State
from prefect.workers.base import BaseWorker

from cluster.launchers.slurm_queue import SlurmError
from flows import control_jobs, slurm_worker
from flows.slurm_worker import SlurmJobConfiguration, SlurmWorker

ID = uuid.UUID("0b6c1c4e-1111-4222-8333-123456789abc")
NAME = f"pre-train-{ID}"
FLOW = Flow(name="pre train", labels={})
FLOW_RUN = FlowRun(id=ID, name="misty-crane", flow_id=uuid.uuid4(), state=Scheduled())


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmJobConfiguration:
    monkeypatch.setenv("UNRELATED", "stays here")
    made = SlurmJobConfiguration(
        partition="cpu",
        time_limit="90s",
        memory="2G",
        setup=["module load python/3.11"],
        working_dir=tmp_path,
        python="/opt/my python/bin/python",
        extra_directives=["--account=research"],
        env={"EXTRA": "two\nlines"},
    )
    with temporary_settings({PREFECT_API_URL: "http://login1:4200/api", PREFECT_API_AUTH_STRING: "admin:secret-word"}):
        made.prepare_for_flow_run(FLOW_RUN, flow=FLOW)
    return made


class FakeSlurm:
    """Commands of Slurm's: what they answer, and how they were called."""

    def __init__(self) -> None:
        self.queue: list[str] = []
        self.failing: dict[str, str] = {}
        self.calls: list[tuple[str, ...]] = []
        self.stdin = ""

    def call(self, argv: Sequence[str], *, stdin: str = "") -> str:
        self.calls.append(tuple(argv))
        if argv[0] in self.failing:
            raise SlurmError(self.failing[argv[0]])
        if argv[0] == "squeue":
            return "\n".join(self.queue)
        if argv[0] == "sbatch":
            self.stdin = stdin
            return "4711;cluster\n"
        if "--signal=KILL" in argv or "--state=PENDING" in argv:
            self.queue = [line for line in self.queue if "|RUNNING|" in line and "--signal=KILL" not in argv]
        return ""

    def add(self, state: str) -> None:
        self.queue.append(f"4242|{state}|None|N/A|node1|{NAME}")

    def called(self, program: str) -> list[tuple[str, ...]]:
        return [argv for argv in self.calls if argv[0] == program]


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm()
    monkeypatch.setattr(control_jobs, "call", fake.call)
    return fake


@pytest.mark.slow
def test_prefect_finds_the_worker_by_its_type() -> None:
    """By the entry point of the installed package, as `prefect worker start --type slurm` does."""
    code = "from prefect.workers.base import BaseWorker; print(BaseWorker.get_worker_class_from_type('slurm').__module__)"
    found = subprocess.run((sys.executable, "-P", "-c", code), capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["flows.slurm_worker"]


def test_the_form_of_a_work_pool_says_what_every_variable_is() -> None:
    template = BaseWorker.get_worker_class_from_type("slurm").get_default_base_job_template()  # type: ignore[union-attr]
    properties = template["variables"]["properties"]
    assert set(template["job_configuration"]) == set(properties), "what is in the form has an effect, and the other way round"
    assert all(field["title"] and field["description"].endswith((".", "python/3.11")) for field in properties.values())
    assert properties["time_limit"]["anyOf"][0] == {"type": "string", "pattern": r"^\d+[smhd]$"}


def test_options_of_the_job(configuration: SlurmJobConfiguration, tmp_path: Path) -> None:
    assert configuration.options() == (
        f"--job-name={NAME}",
        f"--comment={NAME}",
        "--ntasks=1",
        "--cpus-per-task=1",
        f"--chdir={tmp_path}",
        f"--output={tmp_path}/.headrace/control/%j.out",
        "--open-mode=append",
        "--signal=B:TERM@60",
        "--dependency=singleton",
        "--partition=cpu",
        "--mem=2G",
        "--time=2",
        "--no-requeue",
        "--account=research",
    )


def test_the_script_becomes_the_flow(configuration: SlurmJobConfiguration) -> None:
    lines = configuration.script().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert lines[-2:] == ["module load python/3.11", "exec '/opt/my python/bin/python' -m prefect flow-run execute"]


def test_the_script_hides_the_flow_s_own_job_from_the_jobs_of_its_stages(configuration: SlurmJobConfiguration) -> None:
    setup = configuration.model_copy(update={"setup": [], "command": "env"}).script()
    env = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_MEM_PER_CPU": "1000", "SLURM_JOB_ID": "7", "PATH": "/usr/bin:/bin"}
    shown = subprocess.run(("bash", "-c", setup), env=env, capture_output=True, text=True, check=True).stdout
    assert [line for line in shown.splitlines() if line.startswith("SLURM_")] == ["SLURM_CONF=/etc/slurm.conf"]


def test_credentials_go_neither_into_the_script_nor_the_command_line(configuration: SlurmJobConfiguration, slurm: FakeSlurm) -> None:
    assert configuration.submit() == "4711"
    (argv,) = slurm.called("sbatch")
    assert not any("secret-word" in word for word in (*argv, configuration.script()))
    given = dict(entry.split("=", 1) for entry in slurm.stdin.split("\0") if entry)
    assert given["PREFECT_API_AUTH_STRING"] == "admin:secret-word"
    assert given["PREFECT_API_URL"] == "http://login1:4200/api"
    assert given["PREFECT__FLOW_RUN_ID"] == str(ID)
    assert given["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    assert given["EXTRA"] == "two\nlines"
    assert "UNRELATED" not in given


@pytest.mark.parametrize("directive", ["--dependency=afterok:1", "--partition=gpu", "two --words", "-A x"])
def test_directives_that_break_the_rules_are_refused(configuration: SlurmJobConfiguration, directive: str) -> None:
    with pytest.raises(ValueError, match="extra_directives"):
        configuration.model_copy(update={"extra_directives": [directive]}).options()


def test_a_job_that_waits_already_is_taken_over(configuration: SlurmJobConfiguration, slurm: FakeSlurm) -> None:
    """An `sbatch` before was taken, and reported failure; or its worker died."""
    slurm.add("PENDING")
    assert configuration.submit() == "4242"
    assert slurm.called("sbatch") == []


def test_a_job_that_still_runs_is_followed_by_the_next(configuration: SlurmJobConfiguration, slurm: FakeSlurm) -> None:
    """The flow run was rescheduled, and its process is ending: the new job waits for that."""
    slurm.add("RUNNING")
    assert configuration.submit() == "4711"


class Status:
    """What the worker reports of a submission."""

    def __init__(self) -> None:
        self.value: Any = None

    def started(self, value: Any = None) -> None:
        self.value = value


@pytest.fixture
def proposed(monkeypatch: pytest.MonkeyPatch) -> list[State[Any]]:
    states: list[State[Any]] = []

    async def propose(_client: object, state: State[Any], *, flow_run_id: uuid.UUID) -> State[Any]:
        assert flow_run_id == ID
        states.append(state)
        return state

    monkeypatch.setattr(slurm_worker, "propose_state", propose)
    return states


def run_worker(act: Callable[[SlurmWorker], Any]) -> Any:
    """Runs a method of a worker that talks to no server."""
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        worker = SlurmWorker(work_pool_name="pool")
        worker._client = object()  # type: ignore[assignment]
        return asyncio.run(act(worker))


def test_a_submitted_job_is_known_by_name_and_number(configuration: SlurmJobConfiguration, slurm: FakeSlurm, proposed: list[State[Any]]) -> None:
    status = Status()
    result = run_worker(lambda worker: worker.run(FLOW_RUN, configuration, status))  # type: ignore[arg-type]
    assert (status.value, result.identifier, result.status_code, proposed) == (f"{NAME}:4711", f"{NAME}:4711", 0, [])


def test_a_flow_run_waits_while_slurm_does_not_answer(configuration: SlurmJobConfiguration, slurm: FakeSlurm, proposed: list[State[Any]]) -> None:
    slurm.failing = {"sbatch": "Unable to contact slurm controller", "squeue": "Unable to contact slurm controller"}
    status = Status()
    run_worker(lambda worker: worker.run(FLOW_RUN, configuration, status))  # type: ignore[arg-type]
    assert isinstance(status.value, SlurmError), "there is nothing that could be cancelled"
    assert [(state.type, state.name) for state in proposed] == [(StateType.SCHEDULED, "AwaitingRetry")]


def test_a_refused_job_is_an_error_in_slurm_s_words(configuration: SlurmJobConfiguration, slurm: FakeSlurm, proposed: list[State[Any]]) -> None:
    slurm.failing = {"sbatch": "invalid partition specified: cpu"}
    with pytest.raises(InfrastructureNotAvailable, match="invalid partition specified: cpu"):
        run_worker(lambda worker: worker.run(FLOW_RUN, configuration, Status()))  # type: ignore[arg-type]
    assert proposed == []


@pytest.mark.parametrize(("state", "signals"), [("PENDING", ["--state=PENDING"]), ("RUNNING", ["--state=PENDING", "--signal=TERM", "--signal=KILL"])])
def test_a_job_is_asked_to_end_and_then_killed(
    configuration: SlurmJobConfiguration, slurm: FakeSlurm, state: str, signals: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.add(state)
    run_worker(lambda worker: worker.kill_infrastructure(f"{NAME}:4242", configuration, grace_seconds=0))
    sent = slurm.called("scancel")
    assert all(f"--name={NAME}" in argv and "--me" in argv for argv in sent)
    assert [signal for signal in signals if not any(signal in argv for argv in sent)] == []
    assert slurm.queue == []


def test_what_cannot_be_ended(configuration: SlurmJobConfiguration, slurm: FakeSlurm) -> None:
    with pytest.raises(InfrastructureNotFound):
        run_worker(lambda worker: worker.kill_infrastructure(f"{NAME}:4242", configuration))
    slurm.failing = {"squeue": "timed out"}
    with pytest.raises(InfrastructureNotAvailable):
        run_worker(lambda worker: worker.kill_infrastructure(f"{NAME}:4242", configuration))
