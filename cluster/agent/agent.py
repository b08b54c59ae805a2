"""The node agent: claims an attempt, starts its ranks or items, watches them, publishes what happens, and leaves the exit record.

    python -m cluster.agent.agent --storage URL --attempt FOLDER --key KEY --submission TOKEN [--node-rank N]
        [--grace SECONDS] [--gather] [--log | --detach LOG]

It is the only process on a node that talks to storage for the job, never imports torch, and outlives whoever submitted it.
"""

import argparse
import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.agent.allocation import Allocation, BudgetShare
from cluster.agent.array import run_array
from cluster.agent.buffers import RankBuffers
from cluster.agent.gang import follow_gang, lead_gang
from cluster.agent.gathering import join
from cluster.agent.memory import OomWatch
from cluster.agent.node import JobEnd, Ledger, Node, Outcome, StopWish
from cluster.agent.nursery import Nursery
from cluster.agent.peers import Peers
from cluster.agent.publisher import Publisher
from cluster.agent.scratch import NodeScratch
from cluster.agent.staging import staging_of
from cluster.attempt import claim_attempt, counted_history
from cluster.budget import budget_of
from cluster.deadline import Costs
from cluster.environment import compute_environment
from cluster.failure_rate import read_exposure
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.patience import PatientStorage
from cluster.process import started_at
from cluster.storage import AlreadyExistsError, Storage, open_storage
from schemas.attempt import Cause, Claim, ExitRecord, Incident
from schemas.canonical import canonical_json
from schemas.errors import HeadraceError
from schemas.exit_code import ExitCode
from schemas.job import JobKind, JobSpec

logger = logging.getLogger(__name__)

_CLAIM_POLL_S = 0.2
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an agent; returns its exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.detach is not None:
        _detach(arguments.detach)
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT, stream=sys.stderr)
    try:
        return int(run(arguments))
    except HeadraceError as error:
        logger.error("%s", error)
        return int(error.exit_code)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Claims the attempt and runs it to its end. An agent that loses the claim ends at once, having started nothing."""
    stop = StopWish()
    opened, attempt = open_storage(arguments.storage), AttemptLayout(arguments.attempt)
    spec = JobSpec.model_validate_json(opened.read(attempt.spec))
    if arguments.grace is not None:
        spec = spec.model_copy(update={"grace_s": arguments.grace})
    storage = PatientStorage(opened, patience_s=spec.lost_after_s)
    if arguments.log:
        _keep_log(NodeScratch.of(spec, arguments.node_rank).agent_log)
    whose = {"spec": spec, "node_rank": arguments.node_rank, "submission": arguments.submission}
    if not (join(storage, attempt, stop=stop, **whose) if arguments.gather else _is_ours(storage, attempt, **whose)):
        logger.info("attempt %s belongs to another submission; nothing to do here", spec.key)
        return ExitCode.DONE
    node = _node(storage, attempt, spec=spec, node_rank=arguments.node_rank, advertise=arguments.advertise, stop=stop)
    node.publisher.start()
    try:
        end = _work(node)
    finally:
        node.nursery.close()
        try:
            node.staging.settle()
        finally:
            incidents = node.ledger.close()
            node.publisher.stop(files={node.scratch.agent_log: "agent", node.scratch.zygote_log: "zygote"})
    if end is not None:
        _leave_exit_record(node, end.outcome, incidents=(*end.incidents, *incidents))  # this node's own come last: the newest one decided
    node.staging.close()
    shutil.rmtree(node.scratch.folder, ignore_errors=True)  # published; what is left is only disk space
    with contextlib.suppress(OSError):  # another node of this machine still uses it
        node.scratch.folder.parent.rmdir()
    return end.outcome.exit_code if end is not None else ExitCode.DONE


def _node(storage: PatientStorage, attempt: AttemptLayout, *, spec: JobSpec, node_rank: int, advertise: str, stop: StopWish) -> Node:
    artifact, scratch = ArtifactLayout(spec.artifact_key), NodeScratch.of(spec, node_rank)
    scratch.folder.mkdir(parents=True, exist_ok=True)
    publisher = Publisher(open_storage(storage.url), artifact=artifact, attempt=attempt, key=spec.key, node_rank=node_rank)
    stop.listen(publisher, allocations=_allocations(storage, spec))
    env = compute_environment(os.environ, extra=spec.env, project_dir=spec.project_dir, threads=spec.threads_per_rank, python=sys.executable)
    history = counted_history(storage, artifact, spec=spec)
    return Node(
        spec=spec,
        storage=storage,
        staging=staging_of(open_storage(storage.url), spec=spec, patient=storage, attempt=attempt, node_rank=node_rank),
        attempt=attempt,
        node_rank=node_rank,
        advertise=advertise,
        scratch=scratch,
        nursery=Nursery(preload=spec.preload, env=env, cwd=spec.project_dir, log=scratch.zygote_log, standby=spec.standby),
        publisher=publisher,
        ledger=Ledger(
            publisher=publisher,
            attempt=attempt,
            spec=spec,
            node_rank=node_rank,
            history=history.incidents,
            baseline=history.baseline,
            exposure=read_exposure(storage, artifact, step_name=spec.step_name, before=spec.attempt),
        ),
        stop=stop,
        memory=OomWatch(),
        buffers=RankBuffers(),
    )


def _allocations(storage: Storage, spec: JobSpec) -> tuple[Allocation, ...]:
    """What the budget leaves, then the allocation, as far as their ends are known.

    Items of an array commit nothing on the way: they are left as much of it as there is.
    """
    allocations: list[Allocation] = []
    if (budget := budget_of(storage, spec)) is not None:
        allocations.append(BudgetShare(budget, grace_s=spec.grace_s))
    if spec.time_limit_s is not None:
        costs = Costs(save_s=0.0) if spec.kind is JobKind.ARRAY else None
        allocations.append(Allocation(spec.time_limit_s, grace_s=spec.grace_s, environment=os.environ, costs=costs))
    return tuple(allocations)


def _work(node: Node) -> JobEnd | None:
    """Runs the job on this node. Returns how it ended on node 0, None on others."""
    peers = Peers(
        storage=node.storage,
        artifact=node.artifact,
        attempt=node.attempt,
        spec=node.spec,
        node_rank=node.node_rank,
        asked_to_stop=lambda: node.stop.wish is not None,
    )
    try:
        if node.spec.kind is JobKind.ARRAY:
            return run_array(node, peers)
        if node.node_rank == 0 and (wish := node.stop.wish) is not None and wish.cause is Cause.BUDGET:  # the attempts before left nothing of it
            return JobEnd(Outcome(ExitCode.POLICY, wish.cause, wish.reason, -1))
        if node.node_rank == 0:
            return JobEnd(lead_gang(node, peers))
        follow_gang(node, peers)
        return None
    except HeadraceError as error:
        logger.error("%s", error)
        outcome = Outcome(error.exit_code, Cause.STORAGE if error.exit_code is ExitCode.UNREACHABLE else Cause.UNKNOWN, str(error), -1)
    except Exception as error:
        logger.exception("the agent failed")
        outcome = Outcome(ExitCode.BUG, Cause.UNKNOWN, f"the agent failed: {type(error).__name__}: {error}", -1)
    return JobEnd(outcome) if node.node_rank == 0 else None


def _leave_exit_record(node: Node, outcome: Outcome, *, incidents: tuple[Incident, ...]) -> None:
    record = ExitRecord(
        key=node.spec.key,
        exit_code=outcome.exit_code,
        cause=outcome.cause,
        message=outcome.message,
        epoch=outcome.epoch,
        incidents=incidents,
        ended_at=time.time(),
    )
    try:
        node.storage.create_exclusive(node.attempt.exit, canonical_json(record))
    except AlreadyExistsError:
        logger.warning("attempt %s was declared lost meanwhile; its exit record stands", node.spec.key)


def _is_ours(storage: Storage, attempt: AttemptLayout, *, spec: JobSpec, node_rank: int, submission: str) -> bool:
    """Claims the attempt (node 0) or waits for node 0's claim; returns whether this submission has it."""
    if node_rank == 0:
        return claim_attempt(storage, attempt, key=spec.key, submission=submission)
    deadline = time.monotonic() + spec.lost_after_s
    while not storage.exists(attempt.claim):
        if time.monotonic() > deadline:
            return False
        time.sleep(_CLAIM_POLL_S)
    return Claim.model_validate_json(storage.read(attempt.claim)).submission == submission


def _keep_log(log: Path) -> None:
    """Writes the log into a file, too: what goes to standard error is a container's log, which is gone with it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log)
    handler.setFormatter(logging.Formatter(_LOG_FORMAT))
    logging.getLogger().addHandler(handler)


def _detach(log: Path) -> None:
    """Goes on in a child of its own session that holds nothing of the submitter's; the parent prints `pid started` and ends."""
    log.parent.mkdir(parents=True, exist_ok=True)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid > 0:
        os.close(write_end)
        alive = os.read(read_end, 1) == b"."  # the child has its own session now: it survives whatever happens to the submitter
        if alive:
            sys.stdout.write(f"{pid} {started_at(pid) or 0.0}\n")  # 0.0: it has ended already
            sys.stdout.flush()
        os._exit(ExitCode.DONE if alive else ExitCode.BUG)
    os.close(read_end)
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    for source in {nothing, output}:
        os.close(source)
    os.write(write_end, b".")
    os.close(write_end)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The node agent of a Headrace job.")
    parser.add_argument("--storage", required=True, help="storage root, absolute path or URL")
    parser.add_argument("--attempt", required=True, help="the attempt's folder, relative to the storage root")
    parser.add_argument("--key", required=True, help="the attempt's key; makes this process findable")
    parser.add_argument("--submission", required=True, help="token of this submission: its agents belong together")
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--advertise", default="127.0.0.1", help="address under which other nodes reach this one")
    parser.add_argument("--grace", type=float, default=None, help="seconds between SIGTERM and SIGKILL of ranks, where the launcher gives more")
    parser.add_argument("--gather", action="store_true", help="begin once the agents of all nodes are there")
    parser.add_argument("--log", action="store_true", help="keep the log in the node's scratch folder, too")
    parser.add_argument("--detach", type=Path, default=None, metavar="LOG", help="go on in a session of its own, with this log")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
