"""Brings Prefect's flow runs and the Slurm jobs that run them back into agreement: when a worker starts, and every few seconds after.

A worker, a flow's process, a node and Prefect's own server may die at any moment, and each takes news of the others along. So a
flow run may say Running for ever although its process is gone, and a job may live on although its flow run has ended. Slurm and the run's
own journal know better: they are asked, one question for all jobs, and a flow run whose journal is open gets a new process, which adopts.
"""

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

from anyio.to_thread import run_sync
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.logging import get_logger
from prefect.states import AwaitingRetry, Cancelled, Crashed

from cluster.launchers.protocol import JobReport, JobState
from cluster.layout import flow_run_link
from cluster.lease import PATIENCE_S, Watched, holder_is_alive
from cluster.storage import open_storage
from flows.cancellation import request_cancel
from schemas.errors import HeadraceError
from schemas.exit_code import ExitCode
from schemas.journal import EventKind, RunHandle
from schemas.recipe import load_recipe
from tasks.runs import Run, open_run

logger = get_logger("worker.slurm.reconciling")  # a worker's console shows Prefect's own loggers

Job = Literal["waits", "runs", "over", "unknown"]
"""What Slurm answers about the jobs of a flow run. `over`: it answered, and none waits or runs. `unknown`: it did not answer."""

Journal = Literal["held", "open", "interrupted", "stopped", "finished", "failed", "none", "foreign", "unread"]
"""What the run's journal says. `held`: a live process controls the run, whatever Slurm says. `open`: begun, and without an end: jobs may go
on. `interrupted`: ended in order at a signal, jobs and all. `stopped`: somebody asked for the end. `none`: the flow run has not begun a run.
`foreign`: a flow that keeps no journal. `unread`: not asked, or it cannot be read."""

Decision = Literal["leave", "reschedule", "crash", "cancelled", "stop run", "end job"]
"""Nothing; a new process; the flow run has crashed, or is cancelled; the run's own jobs are asked to stop; the flow run's job is ended."""

Watch = dict[str, Watched]
"""Run → what was seen of its control lease."""

SETTLING_S: Mapping[StateType, float] = {**dict.fromkeys(StateType, 10.0), StateType.PENDING: 60.0}
"""A younger state is left alone. Pending: between this state and its `sbatch` a worker resolves blocks and waits for Slurm."""
ENDING_S = 60.0
"""A flow run's process has so long to end by itself, after it reported the end or was asked for it."""
MOST_IN_A_ROW = 3
"""So many jobs in a row may end before their flow run was Running: a wrong `python` or `setup` ends every one."""
MOST_RESCHEDULED = 100
"""So many times in all is a flow run given a new process."""
RESCHEDULED = "AwaitingRetry: its Slurm job is over"
"""How the message of such a state begins; states are counted by it."""
_MOST_BETWEEN_LOOKS_S = 15.0
"""What counts as watched from one look to the next: while storage rests, or this process does, nobody's silence is seen. A worker looks with every
heartbeat, by default every 30 s. A rest, with a holder's 10 s between two renewals before it and after it, must stay within `PATIENCE_S`."""
_BY_LIMIT = "Deployment concurrency"
"""How Prefect begins to say that a limit cancelled a flow run."""
_LOOK_BACK = timedelta(days=1)
_PAGE = 200
_ENDING = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED, StateType.CANCELLING})
_JOBS: Mapping[JobState, Job] = {JobState.PENDING: "waits", JobState.RUNNING: "runs"}


def decide(
    state: StateType, *, age_s: float, job: Job, journal: Journal, by_limit: bool = False, rescheduled: int = 0, in_a_row: int = 0
) -> Decision:
    """Returns what to do about one flow run. Pure.

    | flow run                  | its job     | its journal          | decision                                              |
    |---------------------------|-------------|----------------------|-------------------------------------------------------|
    | any                       | unknown     | any                  | leave: Slurm did not answer, and nothing is known     |
    | scheduled, paused         | any         | any                  | leave: the worker submits it when its time has come   |
    | pending, running          | waits, runs | any                  | leave: that is how it should be                       |
    | cancelling                | waits       | any                  | end job: it has no process that could hear of it      |
    | cancelling, ended         | waits, runs | any                  | end job, once its process had time to end by itself   |
    | any, too young            | over        | any                  | leave: what is read may have crossed with the change  |
    | any                       | over        | held, unread         | leave                                                 |
    | pending, running          | over        | none, open,          | reschedule: a new process adopts, or finds all done   |
    |                           |             | interrupted, finished|                                                       |
    | pending                   | over        | foreign              | reschedule: it never started                          |
    | running                   | over        | foreign              | crash: not known to be repeatable                     |
    | pending, running          | over        | failed               | crash: it failed, and could not say so                |
    | pending, running          | over        | stopped              | cancelled                                             |
    | cancelling                | over        | any                  | cancelled                                             |
    | crashed                   | over        | open, interrupted    | reschedule: its process was killed                    |
    | cancelled                 | over        | open                 | stop run: its jobs may go on                          |
    | cancelled by a limit      | over        | any                  | leave: a newer flow run goes on with what it began    |
    | ended otherwise           | over        | any                  | leave                                                 |

    Args:
        state: the flow run's, as Prefect knows it.
        age_s: of that state, before Slurm was asked.
        job: what Slurm answered; where it is not `over`, the journal does not count.
        journal: what the journal says.
        by_limit: whether the deployment's concurrency limit, and nobody's wish, cancelled it.
        rescheduled: how often the flow run was rescheduled already; where that is too often, it is crashed instead, or left so.
        in_a_row: how often since it was last Running.
    """
    if job == "unknown" or state in (StateType.SCHEDULED, StateType.PAUSED):
        return "leave"
    if job != "over":
        unheard = state is StateType.CANCELLING and job == "waits"
        return "end job" if unheard or (state in _ENDING and age_s > ENDING_S) else "leave"
    if age_s < SETTLING_S[state] or journal in ("held", "unread"):
        return "leave"
    used_up = rescheduled >= MOST_RESCHEDULED or in_a_row >= MOST_IN_A_ROW
    match state:
        case StateType.CANCELLING:
            return "cancelled"
        case StateType.CANCELLED:
            return "stop run" if journal == "open" and not by_limit else "leave"
        case StateType.CRASHED:
            return "reschedule" if journal in ("open", "interrupted") and not used_up else "leave"
        case StateType.PENDING | StateType.RUNNING:
            if journal == "stopped":
                return "cancelled"
            repeatable = journal in ("none", "open", "interrupted", "finished") or (journal == "foreign" and state is StateType.PENDING)
            return "reschedule" if repeatable and not used_up else "crash"
    return "leave"


def journal_says(run: Run, *, watch: Watch, now: float) -> Journal:
    """Returns where a run's journal stands, and whether somebody controls the run.

    Args:
        run: the run.
        watch: what was seen of control leases before; gets what is seen now.
        now: seconds, monotonic.
    """
    names = tuple(run.storage.names(run.layout.control))
    before = watch.get(run.layout.run_id)
    silent_s = before.silent_s + min(now - before.looked_at, _MOST_BETWEEN_LOOKS_S) if before is not None and before.names == names else 0.0
    watch[run.layout.run_id] = Watched(names, silent_s, looked_at=now)
    if holder_is_alive(run.storage, run.layout.control) and silent_s <= PATIENCE_S:
        return "held"
    events = run.events()
    starts = [event for event in events if event.kind in (EventKind.RUN_STARTED, EventKind.RUN_RESUMED)]
    if not starts:
        return "open"
    ends = [event for event in events if event.kind in (EventKind.RUN_FINISHED, EventKind.RUN_FAILED) and event.sequence > starts[-1].sequence]
    if ends and ends[-1].kind is EventKind.RUN_FINISHED:
        return "finished"
    if ends and ends[-1].figures.get("exit_code") not in (ExitCode.INTERRUPTED, ExitCode.CTRL_C):
        return "failed"
    if run.stop_asked(since=starts[-1].at) or any(event.kind is EventKind.RUN_GIVEN_UP and event.sequence > starts[-1].sequence for event in events):
        return "stopped"
    return "interrupted" if ends else "open"


def run_of(flow_run_id: uuid.UUID, parameters: Mapping[str, Any]) -> Run | None:
    """Returns the run that a flow run of ours works on, or None before it has begun one.

    Raises:
        HeadraceError: the recipe, or the storage that it names, cannot be read from here.
    """
    run_id, root = parameters.get("run_id"), parameters.get("storage_root")
    if root is None:
        path = Path(__file__).resolve().parent.parent / str(parameters["recipe"])  # an absolute one stays as it is
        root = load_recipe(path, tuple(parameters.get("overrides") or ())).config.storage.root
    storage = open_storage(str(root))
    if run_id is not None:
        return Run(storage, str(run_id))
    link = flow_run_link(flow_run_id)
    return open_run(RunHandle.model_validate_json(storage.read(link))) if storage.exists(link) else None


def times_rescheduled(history: Sequence[State]) -> int:
    """Returns how often a flow run was rescheduled from here, by its states."""
    return sum((state.message or "").startswith(RESCHEDULED) for state in history)


def since_running(history: Sequence[State]) -> Sequence[State]:
    """Returns the states after the last Running one, oldest first."""
    oldest_first = sorted(history, key=lambda state: state.timestamp)
    last = max((index for index, state in enumerate(oldest_first) if state.type is StateType.RUNNING), default=-1)
    return oldest_first[last + 1 :]


async def reconcile(
    client: PrefectClient,
    *,
    pool: str,
    jobs: Mapping[uuid.UUID, JobReport],
    asked_at: datetime,
    watch: Watch,
    end_job: Callable[[FlowRun], Awaitable[None]],
) -> None:
    """Looks at every flow run of a work pool that is not at rest, and does what `decide` says.

    Args:
        client: Prefect's server.
        pool: the work pool's name.
        jobs: flow run → what Slurm said of its job; only where Slurm answered.
        asked_at: when Slurm was asked: before the flow runs are read, so that a job which ends meanwhile is not taken for lost.
        watch: kept by the caller from one call to the next.
        end_job: ends the job of a flow run.
    """
    for flow_run in await _restless(client, pool=pool, jobs=jobs):
        try:
            await _reconcile_one(client, flow_run, report=jobs.get(flow_run.id), asked_at=asked_at, watch=watch, end_job=end_job)
        except Exception:  # whatever is wrong with one flow run must not keep the worker from the others
            logger.exception("flow run %s cannot be reconciled now", flow_run.id)


async def _reconcile_one(
    client: PrefectClient,
    flow_run: FlowRun,
    *,
    report: JobReport | None,
    asked_at: datetime,
    watch: Watch,
    end_job: Callable[[FlowRun], Awaitable[None]],
) -> None:
    assert flow_run.state is not None  # it was found by its state, or has a job
    job = _JOBS.get(report.state, "over") if report is not None else "over"
    run, journal = await run_sync(_look_up, flow_run, job, watch)
    age_s = (asked_at - flow_run.state.timestamp).total_seconds()
    by_limit = (flow_run.state.message or "").startswith(_BY_LIMIT)
    decide_with = partial(decide, flow_run.state.type, age_s=age_s, job=job, journal=journal, by_limit=by_limit)
    decision = decide_with()
    if decision == "reschedule":
        history = await client.read_flow_run_states(flow_run.id)
        decision = decide_with(rescheduled=times_rescheduled(history), in_a_row=times_rescheduled(since_running(history)))
    if decision == "leave":
        return
    logger.info("flow run %s (%s): %s; job %s, journal %s", flow_run.id, flow_run.state.name, decision, job, journal)
    if decision == "end job":
        await end_job(flow_run)
    elif decision == "stop run":
        assert run is not None  # it has an open journal
        await run_sync(partial(request_cancel, run, reason="its Prefect flow run was cancelled"))
    else:
        told = f"{report.job_id} {report.told}".strip() if report is not None else "Slurm knows none"
        await _propose(client, flow_run, _state_for(decision, told=told, journal=journal))


def _look_up(flow_run: FlowRun, job: Job, watch: Watch) -> tuple[Run | None, Journal]:
    """Returns the run of a flow run whose job is over, and what its journal says."""
    if job != "over":
        return None, "unread"
    if "recipe" not in flow_run.parameters:
        return None, "foreign"
    try:
        run = run_of(flow_run.id, flow_run.parameters)
        return run, "none" if run is None else journal_says(run, watch=watch, now=time.monotonic())
    except (HeadraceError, OSError) as error:
        logger.warning("the journal of flow run %s cannot be read from here: %s", flow_run.id, error)
        return None, "unread"


def _state_for(decision: Decision, *, told: str, journal: Journal) -> State[Any]:
    if decision == "reschedule":
        return AwaitingRetry(message=f"{RESCHEDULED} ({told}). A new process goes on with what is committed.")
    if decision == "cancelled":
        return Cancelled(message=f"Its Slurm job is over ({told}), as asked.")
    why = "the run failed, see its journal (headrace status)" if journal == "failed" else "it was started again as often as makes sense"
    return Crashed(message=f"Its Slurm job is over ({told}), and {why}.")


async def _propose(client: PrefectClient, flow_run: FlowRun, state: State[Any]) -> None:
    """Proposes a state, unless the flow run has moved on since it was read: another worker may do the same."""
    present = await client.read_flow_run(flow_run.id)
    if present.state is None or flow_run.state is None or present.state.id != flow_run.state.id:
        return
    answer = await client.set_flow_run_state(flow_run.id, state)
    if answer.status is not SetStateStatus.ACCEPT:
        logger.warning("Prefect does not take %s for flow run %s: %s", state.name, flow_run.id, answer.details)


async def _restless(client: PrefectClient, *, pool: str, jobs: Mapping[uuid.UUID, JobReport]) -> Sequence[FlowRun]:
    """Returns the pool's flow runs that are under way, ended by force lately, or have a job."""
    lately = FlowRunFilterEndTime(after_=datetime.now(UTC) - _LOOK_BACK)
    started = FlowRunFilterStartTime(is_null_=False)
    filters = [
        FlowRunFilter(state=_in(StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)),
        FlowRunFilter(state=_in(StateType.CRASHED, StateType.CANCELLED), start_time=started, end_time=lately),
        *([FlowRunFilter(id=FlowRunFilterId(any_=list(jobs)))] if jobs else []),
    ]
    found: dict[uuid.UUID, FlowRun] = {}
    for wanted in filters:
        for offset in range(0, 100 * _PAGE, _PAGE):
            page = await client.read_flow_runs(
                work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])), flow_run_filter=wanted, limit=_PAGE, offset=offset
            )
            found |= {flow_run.id: flow_run for flow_run in page}
            if len(page) < _PAGE:
                break
    return list(found.values())


def _in(*types: StateType) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
