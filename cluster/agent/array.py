"""An array on all its nodes: each runs its items, and node 0 says how it all ended."""

import math
from collections.abc import Sequence

from cluster.agent.array_run import SLOT, ArrayRun
from cluster.agent.node import JobEnd, Node, Outcome
from cluster.agent.peers import NodeReport, Peers
from cluster.restart import first_cause
from schemas.attempt import Cause
from schemas.exit_code import ExitCode

_SETTLE_S = 2.0
_LAST_WORDS_S = 15.0
"""Once every item has its record, other nodes notice and end within seconds; one that does not is lost, and not missed."""


def run_array(node: Node, peers: Peers) -> JobEnd | None:
    """Runs this node's items; on node 0 also waits for the other nodes and returns how it all ended."""
    report = ArrayRun(node, peers).run()
    peers.tell(report, slot=SLOT)
    if node.node_rank != 0:
        return None
    all_done = report.outcome == "finished"
    reports = peers.collect(report, slot=SLOT, settle_s=_SETTLE_S, most_s=_LAST_WORDS_S if all_done else math.inf)
    if all_done:  # whatever became of other nodes
        return _end(report, reports)
    failed = [each for each in reports if each.outcome == "failed"]
    stopped = [each for each in reports if each.outcome == "stopped"]
    chosen = failed[first_cause([each.finding() for each in failed])] if failed else (stopped or reports)[0]
    if chosen.outcome == "stopped" and chosen.cause is not Cause.CANCELLED:  # the supervisor decides from incidents
        node.ledger.judge(
            chosen.finding(),
            epoch=max(each.epoch for each in reports),
            rank=-1,
            step=-1,
            committed_step=sum(each.committed_step for each in reports),
            exit_status=0,
            at=chosen.at,
            idle=0,
        )
    return _end(chosen, reports)


def _end(chosen: NodeReport, reports: Sequence[NodeReport]) -> JobEnd:
    code = ExitCode.DONE if chosen.outcome == "finished" else chosen.stop_code or ExitCode.INTERRUPTED
    others = tuple(incident for each in reports[1:] for incident in each.incidents)
    return JobEnd(Outcome(code, chosen.cause, chosen.message, max(each.epoch for each in reports)), others)
