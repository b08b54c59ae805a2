"""A Prefect worker for Slurm: `prefect worker start --type slurm --pool POOL`, on a machine that has Slurm's commands.

Every flow run becomes one small batch job that runs the *control* flow; the stages submit jobs of their own. The worker submits and
returns: it may die and come back at any time, and so may Slurm, Prefect's server and the flow's process. Each sync with Prefect also
reconciles (`flows.reconciling`), so that what was lost meanwhile is found.

A flow run's jobs share one name that ends with its id, and Slurm runs jobs of one name one after the other (`--dependency=singleton`).
So an `sbatch` that succeeded late, twice, or after it had reported failure, never makes two processes of one flow run.
"""

import os
import re
import shlex
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.abc
from anyio.to_thread import run_sync
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import InfrastructureNotAvailable, InfrastructureNotFound
from prefect.states import AwaitingRetry
from prefect.utilities.engine import propose_state
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult
from pydantic import Field

from cluster.environment import ALLOWED
from cluster.launchers.slurm import require_commands
from cluster.launchers.slurm_queue import SlurmError
from flows.control_jobs import ask_queue, cancel, is_well, live_jobs, submit
from schemas.cluster_config import ClusterConfig, ClusterKind

if TYPE_CHECKING:
    from prefect.client.schemas.objects import Flow, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse

    from flows.reconciling import Watch

_INHERITED = (*ALLOWED, "PYTHONPATH", "SLURM_CONF")
"""What a job gets of the worker's own environment; the rest is Prefect's settings, and what the work pool's `env` says."""
_RESCHEDULE = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
"""A job that is preempted, or reaches its time limit, leaves its flow run to the next one."""
_LAST_SECONDS = 120
"""So long before the time limit the flow's process is told."""
_GRACE_S = 30.0
"""Between SIGTERM and SIGKILL, where Prefect does not say."""
_RETRY_S = 60.0
"""A flow run that Slurm could not be asked to take is tried again after this."""
_FLOW_RUN = re.compile(r"-(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$")

_TIME = r"^\d+[smhd]$"
_MEMORY = r"^\d+[KMGT]?$"


class SlurmVariables(BaseVariables):
    """What a deployment or a work pool may set: the form in Prefect's UI."""

    partition: str | None = Field(default=None, title="Partition", description="Partition of the control job. Default: the cluster's own default.")
    time_limit: str | None = Field(
        default=None,
        title="Time Limit",
        pattern=_TIME,
        description="Longest run time of the control job, for example 24h. A flow run that takes longer goes on in a next job by itself.",
    )
    memory: str | None = Field(default="2G", title="Memory", pattern=_MEMORY, description="Memory of the control job, for example 2G.")
    cpus: int = Field(default=1, ge=1, title="CPUs", description="Cores of the control job. It computes nothing.")
    setup: list[str] = Field(
        default_factory=list, title="Setup", description="Shell lines run before the flow starts, for example: module load python/3.11"
    )
    working_dir: Path | None = Field(
        default=None, title="Working Directory", description="Absolute folder that the flow starts in, seen by all nodes. Default: the user's home."
    )
    log_folder: Path | None = Field(
        default=None,
        title="Log Folder",
        description="Absolute folder, seen by worker and nodes, for what jobs print: the place to look when one ends before its flow begins. "
        "Default: .headrace/control in the working directory.",
    )
    python: str | None = Field(
        default=None, title="Python", description="Interpreter on the nodes that has Headrace installed. Default: the one that runs the worker."
    )
    extra_directives: list[str] = Field(
        default_factory=list, title="Extra Directives", description="Raw options of sbatch, one each: --account=research, --qos=low."
    )


class SlurmJobConfiguration(BaseJobConfiguration):
    """How one flow run becomes a job: the variables, filled in."""

    partition: str | None = None
    time_limit: str | None = Field(default=None, pattern=_TIME)
    memory: str | None = Field(default=None, pattern=_MEMORY)
    cpus: int = Field(default=1, ge=1)
    setup: list[str] = Field(default_factory=list)
    working_dir: Path = Field(default_factory=Path.home)
    log_folder: Path | None = None
    python: str = sys.executable
    extra_directives: list[str] = Field(default_factory=list)

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: "DeploymentResponse | None" = None,
        flow: "Flow | None" = None,
        work_pool: "WorkPool | None" = None,
        worker_name: str | None = None,
        worker_id: uuid.UUID | None = None,
    ) -> None:
        """Fills in what follows from the flow run: the job's name, command and environment."""
        self.name = self.name or (flow.name if flow else "flow")  # not the flow run's own: that changes while it runs
        self.command = self.command or shlex.join((self.python, "-m", "prefect", "flow-run", "execute"))
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name, worker_id)
        self.name = f"{re.sub(r'[^A-Za-z0-9_.]+', '-', self.name or 'flow')}-{flow_run.id}"
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        self.env = {**inherited, **_RESCHEDULE, **self.env}

    @property
    def output(self) -> Path:
        """Folder of the files that jobs print to."""
        return self.log_folder or self.working_dir / ".headrace" / "control"

    def options(self) -> tuple[str, ...]:
        """Returns the options of `sbatch`.

        Raises:
            ValueError: a raw directive is one that follows from the rest.
        """
        cluster = ClusterConfig(  # the same rules as in a recipe
            kind=ClusterKind.SLURM,
            queue=self.partition,
            time_limit=self.time_limit,
            memory=self.memory,
            extra_directives=tuple(self.extra_directives),
        )
        minutes = None if cluster.time_limit_s is None else max(1, -int(-cluster.time_limit_s // 60))
        last_s = _LAST_SECONDS if minutes is None else min(_LAST_SECONDS, 30 * minutes)  # never from the start
        wanted = {
            "job-name": self.name,
            "comment": self.name,
            "ntasks": 1,
            "cpus-per-task": self.cpus,
            "chdir": self.working_dir,
            "output": str(self.output).replace("%", "%%") + "/%j.out",
            "open-mode": "append",
            "signal": f"B:TERM@{last_s}",  # the shell's place is taken by the flow's process, which tells its own children
            "dependency": "singleton",
            "partition": self.partition,
            "mem": self.memory,
            "time": minutes,
        }
        return (*(f"--{name}={value}" for name, value in wanted.items() if value is not None), "--no-requeue", *self.extra_directives)

    def script(self) -> str:
        """Returns the batch script. Nothing in it is secret: Slurm shows it to whoever may administer it."""
        lines = [
            "#!/bin/bash",
            "# What fails here is answered by Headrace's worker, with a new job. The stages' own jobs must not inherit what this one got.",
            'for name in "${!SLURM_@}"; do [ "$name" = SLURM_CONF ] || unset "$name"; done',
            *self.setup,
            f"exec {self.command}",
        ]
        return "\n".join(lines) + "\n"

    def submit(self) -> str:
        """Submits the job, and returns its number. Raises SlurmError."""
        self.output.mkdir(parents=True, exist_ok=True)  # Slurm does not, and fails a job that cannot open its output
        variables = {name: value for name, value in self.env.items() if value is not None}
        return submit(str(self.name), options=self.options(), script=self.script(), variables=variables)


class SlurmWorkerResult(BaseWorkerResult):
    """What became of a submission; the job itself has hardly begun."""


class SlurmWorker(BaseWorker[SlurmJobConfiguration, SlurmVariables, SlurmWorkerResult]):
    """Submits flow runs as jobs, ends them, and keeps both sides in agreement."""

    type = "slurm"
    job_configuration = SlurmJobConfiguration
    job_configuration_variables = SlurmVariables
    _display_name = "Slurm"
    _description = "Execute flow runs as small jobs of a Slurm cluster. Requires Slurm's commands where the worker runs."
    _documentation_url = ""
    _logo_url = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Args: see `BaseWorker`."""
        super().__init__(*args, **kwargs)
        self._watch: Watch = {}
        self._being_ended: set[str] = set()

    async def setup(self) -> None:
        """Refuses a machine without Slurm's commands; see `BaseWorker.setup`."""
        require_commands()
        await super().setup()

    async def run(
        self, flow_run: FlowRun, configuration: SlurmJobConfiguration, task_status: anyio.abc.TaskStatus[Any] | None = None
    ) -> SlurmWorkerResult:
        """Submits, and returns: see `BaseWorker.run`. While Slurm does not answer, the flow run waits."""
        status = task_status or anyio.TASK_STATUS_IGNORED
        log = self.get_flow_run_logger(flow_run)
        try:
            job_id = await run_sync(configuration.submit)
        except SlurmError as error:
            if await run_sync(is_well):
                raise InfrastructureNotAvailable(f"Slurm refuses the job: {error}") from error
            log.warning("Slurm does not answer: %s", error)
            later = datetime.now(UTC) + timedelta(seconds=_RETRY_S)
            await propose_state(self.client, AwaitingRetry(scheduled_time=later, message=f"Slurm does not answer: {error}"), flow_run_id=flow_run.id)
            status.started(error)
            return SlurmWorkerResult(identifier=str(configuration.name), status_code=0)
        log.info("Slurm job %s, %s; what it prints: %s/%s.out", job_id, configuration.name, configuration.output, job_id)
        identifier = f"{configuration.name}:{job_id}"
        status.started(identifier)
        return SlurmWorkerResult(identifier=identifier, status_code=0)

    async def kill_infrastructure(self, infrastructure_pid: str, configuration: SlurmJobConfiguration, grace_seconds: int = 30) -> None:
        """Ends the jobs of a flow run: SIGTERM, `grace_seconds`, SIGKILL. One that waits just leaves the queue.

        Raises:
            InfrastructureNotFound: there is none.
            InfrastructureNotAvailable: Slurm does not answer.
        """
        del configuration  # jobs are found by their name
        name = infrastructure_pid.partition(":")[0]
        try:
            if name not in await run_sync(live_jobs):
                raise InfrastructureNotFound(f"no live Slurm job {name}")
            await self._end(name, grace_s=grace_seconds)
        except SlurmError as error:
            raise InfrastructureNotAvailable(f"Slurm does not answer: {error}") from error

    async def sync_with_backend(self) -> None:
        """Also reconciles: at the start, and with every heartbeat."""
        await super().sync_with_backend()
        if self._work_pool is not None:
            await self._reconcile()

    async def _reconcile(self) -> None:
        from flows.reconciling import reconcile  # a worker's own business: other users of this module need no recipes and runs

        asked_at = datetime.now(UTC)
        try:
            reports = await run_sync(ask_queue)
        except SlurmError as error:
            self._logger.warning("Slurm does not answer, flow runs are left as they are: %s", error)
            return
        jobs = {uuid.UUID(match["id"]): report for name, report in reports.items() if (match := _FLOW_RUN.search(name))}
        names = {uuid.UUID(match["id"]): name for name in reports if (match := _FLOW_RUN.search(name))}

        async def end_job(flow_run: FlowRun) -> None:
            assert self._runs_task_group is not None  # there is one between setup and teardown
            self._runs_task_group.start_soon(self._end_quietly, names[flow_run.id])

        await reconcile(self.client, pool=self._work_pool_name, jobs=jobs, asked_at=asked_at, watch=self._watch, end_job=end_job)

    async def _end_quietly(self, name: str) -> None:
        """Ends a job, unless that is under way; what does not succeed is tried again by the next reconciliation."""
        if name in self._being_ended:
            return
        self._being_ended.add(name)
        try:
            await self._end(name, grace_s=_GRACE_S)
        except SlurmError as error:
            self._logger.warning("job %s cannot be ended now: %s", name, error)
        finally:
            self._being_ended.remove(name)

    async def _end(self, name: str, *, grace_s: float) -> None:
        await run_sync(cancel, name, ("--state=PENDING",))
        await run_sync(cancel, name, ("--state=RUNNING", "--batch", "--signal=TERM"))
        with anyio.move_on_after(grace_s):
            while name in await run_sync(live_jobs):
                await anyio.sleep(1.0)
            return
        await run_sync(cancel, name, ("--signal=KILL",))
