"""Jobs of a Slurm cluster, found by their name, which is the attempt's key."""

import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.environment import checkout
from cluster.launchers.protocol import Command, Handle, JobReport, JobState, Submission
from cluster.launchers.slurm_container import PYTHON, Container
from cluster.launchers.slurm_queue import SlurmError, SlurmQueue, call
from cluster.launchers.slurm_script import batch_script
from schemas.cluster_config import ClusterConfig
from schemas.errors import ConfigError, Problem, UnreachableError
from schemas.job import JobSpec
from schemas.suggestion import nearest_choice

_REFUSED: Mapping[str, str] = {
    "partition(?! not available)": "cluster.queue",  # one that is drained comes back
    "account": "cluster.extra_directives",
    "qos": "cluster.extra_directives",
    "time limit": "cluster.time_limit",
    "node configuration": "cluster",
    "node count": "cluster.nodes",
    "generic resource": "cluster.gpus_per_node",
    "memory": "cluster.memory",
    "unrecognized option": "cluster.extra_directives",
    "invalid option": "cluster.extra_directives",
}
"""What Slurm says when it will never take such a job → the key of the recipe that it is about. Anything else may pass by itself."""

_NEVER_STARTS: Mapping[str, str] = {
    "use this partition|AccountNotAllowed|QOSNotAllowed": "cluster.queue",
    "InvalidAccount|InvalidQOS": "cluster.extra_directives",
    "PartitionTimeLimit": "cluster.time_limit",
    "PartitionNodeLimit": "cluster.nodes",
}
"""The same for jobs that Slurm takes only to let them wait for ever, as most sites have it (`EnforcePartLimits=NO`): its reasons for that."""
_PARTITION = re.compile(r'^#SBATCH --partition="(.*)"$', re.MULTILINE)
_COMMANDS = ("sbatch", "squeue", "scancel")


def require_commands() -> None:
    """Refuses a machine from which no job can be submitted.

    Raises:
        UnreachableError: a command of Slurm's is not on PATH.
    """
    missing = [name for name in _COMMANDS if shutil.which(name) is None]
    if missing:
        mend = "run Headrace on a login node, or install Slurm's client commands; --set cluster.kind=local runs on this machine"
        raise UnreachableError(f"{', '.join(missing)} not on PATH", why="cluster.kind = 'slurm'", mend=mend)


class SlurmLauncher:
    """Submits batch jobs, and asks and cancels by name. Remembers nothing: Slurm does."""

    kind = "slurm"

    def __init__(self, cluster: ClusterConfig, *, run: Callable[..., str] = call) -> None:
        """Args: cluster: what the recipe says of it. run: calls a command of Slurm's."""
        self._cluster, self._run = cluster, run
        self._queue = SlurmQueue(run=run)

    def render(self, spec: JobSpec) -> Submission:
        """See `Launcher.render`: a batch script."""
        resources = self._cluster.resources(spec.stage)
        container = Container.of(spec, self._cluster, checkout=str(checkout()))
        script = batch_script(
            spec,
            resources,
            extra_directives=self._cluster.extra_directives,
            checkout=str(checkout()),
            python=resources.python or (sys.executable if container is None else PYTHON),
            container=container,
        )
        command = Command(argv=("sbatch", "--parsable"), env={}, cwd=spec.project_dir, stdin=script, folders=(spec.scratch_dir,))
        return Submission(key=spec.key, text=script, commands=(command,))

    def submit(self, submission: Submission) -> Handle:
        """See `Launcher.submit`."""
        (command,) = submission.commands
        for folder in command.folders:  # Slurm does not make the folder of its output file, and fails a job that has none
            Path(folder).mkdir(parents=True, exist_ok=True)
        try:
            answer = self._run(command.argv, stdin=command.stdin)
        except SlurmError as error:
            raise self._refusal(str(error), submission) from error
        finally:
            self._queue.forget()
        self._check_that_it_can_start(submission)
        return Handle(key=submission.key, job_id=answer.strip().partition(";")[0])

    def query(self, keys: Sequence[str]) -> Mapping[str, JobReport]:
        """See `Launcher.query`."""
        return self._queue.reports(keys)

    def cancel(self, key: str) -> None:
        """See `Launcher.cancel`: a job that waits leaves the queue, one that runs gets SIGTERM and ends by itself."""
        for how in (("--state=PENDING",), ("--state=RUNNING", "--signal=TERM"), ("--state=SUSPENDED", "--signal=TERM")):
            try:
                self._run(("scancel", "--quiet", "--me", f"--name={key}", *how))
            except SlurmError:  # ended meanwhile, or nobody answers: its agents hear of it from storage, and the supervisor asks again
                continue
        self._queue.forget()

    def release(self, key: str) -> None:
        """See `Launcher.release`: Slurm forgets by itself."""

    def _refusal(self, said: str, submission: Submission) -> ConfigError | UnreachableError:
        """Returns what a refusal of `sbatch` means: the recipe is wrong, or Slurm is not well."""
        for words, where in _REFUSED.items():
            if re.search(words, said, re.IGNORECASE):
                return ConfigError((self._problem(where, f"Slurm refuses the job: {said}", script=submission.text),), source="Slurm")
        mend = "headrace resume submits it again, or adopts it if Slurm took it after all"
        return UnreachableError(f"Slurm did not take job {submission.key}", why=said, mend=mend)

    def _check_that_it_can_start(self, submission: Submission) -> None:
        """Takes a job back that would wait for ever: Slurm knows as soon as it has it. The answer serves the next question, too."""
        report = self._queue.reports([submission.key])[submission.key]
        for reasons, where in _NEVER_STARTS.items():
            if report.state is JobState.PENDING and re.search(reasons, report.told):
                self.cancel(submission.key)
                message = f"Slurm would let the job wait for ever: {report.told}"
                raise ConfigError((self._problem(where, message, script=submission.text),), source="Slurm")

    def _problem(self, where: str, message: str, *, script: str) -> Problem:
        if where != "cluster.queue":
            name = where.rpartition(".")[2]
            return Problem(where, repr(getattr(self._cluster, name)) if name in ClusterConfig.model_fields else "", message)
        asked = _PARTITION.search(script)
        queue = asked[1] if asked is not None else None
        stages = [stage for stage, resources in self._cluster.stages.items() if queue is not None and resources.queue == queue]
        key = f"cluster.stages.{stages[0].value}.queue" if stages and queue != self._cluster.queue else where
        return Problem(key, repr(queue), message, nearest=self._nearest(queue))

    def _nearest(self, queue: str | None) -> str:
        """Returns the partition that was probably meant; empty when it is there, and only refuses."""
        try:
            partitions = self._run(("sinfo", "--noheader", "--all", "--format=%R")).split()
        except SlurmError:
            return ""
        return "" if queue is None or queue in partitions else nearest_choice(queue, partitions)
