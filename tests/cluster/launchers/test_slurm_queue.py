"""What Slurm's answers mean, how often it is asked, and what follows when it does not answer."""

from collections.abc import Sequence

import pytest

from cluster.launchers.protocol import JobReport, JobState
from cluster.launchers.slurm_queue import LEAST_AGE_S, MOST_AGE_S, SlurmError, SlurmQueue, parse_accounting, parse_queue
from schemas.attempt import Cause

KEY = "demo-7f3a-train-abc123"
PENDING = f"12|PENDING|Priority|2026-01-01T10:00:00||{KEY}\n"
RUNNING = f"12|RUNNING|None|2026-01-01T10:00:00|node[1-2]|{KEY}\n"


class Slurm:
    """Answers as it is told; an exception stands for a command that fails."""

    def __init__(self, **answers: str | SlurmError) -> None:
        self.answers, self.asked, self.now = answers, [], 1000.0
        self.queue = SlurmQueue(clock=lambda: self.now, run=self.run)

    def run(self, argv: Sequence[str]) -> str:
        self.asked.append(argv[0])
        answer = self.answers.get(argv[0], SlurmError(f"{argv[0]} is not on PATH"))
        if isinstance(answer, SlurmError):
            raise answer
        return answer

    def report(self, key: str = KEY, *, after_s: float = 0.0) -> JobReport:
        self.now += after_s
        return self.queue.reports([key])[key]


@pytest.mark.parametrize(
    ("line", "state", "cause", "told"),
    [
        (PENDING, JobState.PENDING, None, "PENDING (Priority)"),
        (RUNNING, JobState.RUNNING, None, "RUNNING"),
        (f"1|COMPLETING|None|N/A|n1|{KEY}", JobState.RUNNING, None, "COMPLETING"),
        (f"1|SUSPENDED|None|N/A|n1|{KEY}", JobState.RUNNING, None, "SUSPENDED"),
        (f"1|COMPLETED|None|N/A|n1|{KEY}", JobState.ENDED, None, "COMPLETED"),
        (f"1|FAILED|NonZeroExitCode|N/A|n1|{KEY}", JobState.ENDED, None, "FAILED (NonZeroExitCode)"),
        (f"1|CANCELLED|None|N/A|n1|{KEY}", JobState.ENDED, Cause.CANCELLED, "CANCELLED"),
        (f"1|PREEMPTED|None|N/A|n1|{KEY}", JobState.ENDED, Cause.PREEMPTION, "PREEMPTED"),
        (f"1|TIMEOUT|TimeLimit|N/A|n1|{KEY}", JobState.ENDED, Cause.TIME_LIMIT, "TIMEOUT (TimeLimit)"),
        (f"1|NODE_FAIL|NodeDown|N/A|n1|{KEY}", JobState.ENDED, Cause.NODE, "NODE_FAIL (NodeDown)"),
        (f"1|OUT_OF_MEMORY|None|N/A|n1|{KEY}", JobState.ENDED, Cause.OUT_OF_MEMORY, "OUT_OF_MEMORY"),
    ],
)
def test_states_mean_one_of_ours_and_why(line: str, state: JobState, cause: Cause | None, told: str) -> None:
    report = parse_queue(line)[KEY]
    assert (report.state, report.cause, report.told) == (state, cause, told)


def test_a_waiting_job_tells_when_it_may_start_and_a_running_one_where_it_runs() -> None:
    assert parse_queue(PENDING)[KEY] == JobReport(JobState.PENDING, job_id="12", told="PENDING (Priority)", starts="2026-01-01T10:00:00")
    assert parse_queue(RUNNING)[KEY].nodes == "node[1-2]"


@pytest.mark.parametrize(
    ("reason", "held"),
    [
        ("Resources", False),
        ("Priority", False),
        ("ReqNodeNotAvail, UnavailableNodes:node[1-2]", False),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", False),
        ("JobHeldUser", True),
        ("JobHeldAdmin", True),
        ("BeginTime", True),
        ("Dependency", True),
        ("PartitionDown", True),
    ],
)
def test_a_job_that_fewer_nodes_would_not_help_is_on_hold(reason: str, held: bool) -> None:
    assert parse_queue(f"12|PENDING|{reason}|N/A||{KEY}\n")[KEY].held is held


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_jobs_with_one_key_the_one_that_runs_counts(order: int) -> None:
    lines = [RUNNING, f"13|COMPLETED|None|N/A|n1|{KEY}\n"][::order]
    assert parse_queue("".join(lines))[KEY].state is JobState.RUNNING


def test_other_peoples_names_do_no_harm() -> None:
    assert set(parse_queue(f"garbage\n1|RUNNING|None|N/A|n1|a|b|c\n{RUNNING}")) == {KEY, "a|b|c"}


def test_who_is_not_in_the_queue_is_absent_where_there_is_no_accounting() -> None:
    slurm = Slurm(squeue="", sacct=SlurmError("Slurm accounting storage is disabled"))
    assert slurm.report().state is JobState.ABSENT
    assert slurm.report(after_s=60).state is JobState.ABSENT
    assert slurm.asked.count("sacct") == 1, "it will not be switched on meanwhile"


def test_accounting_remembers_what_has_left_the_queue() -> None:
    slurm = Slurm(squeue="", sacct=f"12|CANCELLED by 1000|n[1-2]|{KEY}\n")
    assert (slurm.report().state, slurm.report().cause, slurm.report().told) == (JobState.ENDED, Cause.CANCELLED, "CANCELLED by 1000")
    assert slurm.asked.count("sacct") == 1, "an end is final"
    assert parse_accounting("", key=KEY).state is JobState.ABSENT


@pytest.mark.parametrize(
    "answers", [{"squeue": SlurmError("Unable to contact slurm controller")}, {"squeue": "", "sacct": SlurmError("Connection refused")}]
)
def test_no_answer_is_no_end(answers: dict[str, str | SlurmError]) -> None:
    assert Slurm(**answers).report().state is JobState.UNKNOWN


def test_one_call_answers_for_all_jobs_and_is_rarer_the_longer_nothing_changes() -> None:
    slurm = Slurm(squeue=PENDING)
    for _ in range(4 * 3600):
        assert slurm.report(after_s=0.25).state is JobState.PENDING
    seconds, asked = 3600, len(slurm.asked)
    assert seconds / MOST_AGE_S <= asked <= seconds / MOST_AGE_S * 1.5
    slurm.answers["squeue"] = RUNNING
    assert slurm.report(after_s=MOST_AGE_S).state is JobState.RUNNING
    slurm.answers["squeue"] = PENDING
    assert slurm.report(after_s=LEAST_AGE_S).state is JobState.PENDING, "something changes: it is asked more often again"


def test_after_a_change_it_is_asked_anew() -> None:
    slurm = Slurm(squeue=PENDING)
    slurm.report()
    slurm.answers["squeue"] = RUNNING
    slurm.queue.forget()
    assert slurm.report().state is JobState.RUNNING
