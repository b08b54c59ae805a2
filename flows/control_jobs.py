"""The batch jobs that run flows: how they get into Slurm's queue, what it says of them, and how they leave it."""

import tempfile
from collections.abc import Mapping, Sequence

from cluster.launchers.protocol import JobReport, JobState
from cluster.launchers.slurm_queue import SlurmError, all_jobs, call


def submit(name: str, *, options: Sequence[str], script: str, variables: Mapping[str, str]) -> str:
    """Submits a job, and returns its number: that of the one which waits already, where a submission before was taken after all.

    Args:
        name: the job's.
        options: of `sbatch`, the name among them.
        script: what it runs.
        variables: its whole environment.

    Raises:
        SlurmError: Slurm did not take it, or it is not known whether it did.
    """
    present = ask_queue().get(name)
    if present is not None and present.state is JobState.PENDING:
        return present.job_id
    with tempfile.NamedTemporaryFile("w", prefix="headrace-", suffix=".sh") as file:
        file.write(script)
        file.flush()
        # The environment by standard input, which nobody else can read: there are credentials in it. Slurm takes `ALL` of that, whatever
        # the site's default is.
        argv = ("sbatch", "--parsable", "--export=ALL", "--export-file=/dev/stdin", *options, file.name)
        answer = call(argv, stdin="".join(f"{name}={value}\0" for name, value in variables.items()))
    return answer.strip().partition(";")[0]


def ask_queue() -> Mapping[str, JobReport]:
    """Returns job name → report of all the user's jobs that Slurm still knows.

    Raises:
        SlurmError: it does not answer.
    """
    return all_jobs(call)


def live_jobs() -> Sequence[str]:
    """Returns the names of the user's jobs that wait or run. Raises SlurmError."""
    return [name for name, report in ask_queue().items() if report.state in (JobState.PENDING, JobState.RUNNING)]


def is_well() -> bool:
    """Whether Slurm answers at all: then its refusal was meant."""
    try:
        ask_queue()
    except SlurmError:
        return False
    return True


def cancel(name: str, how: Sequence[str]) -> None:
    """Sends a signal to the user's jobs of a name, or takes them out of the queue. Raises SlurmError."""
    call(("scancel", "--quiet", "--me", f"--name={name}", *how))
