"""How the agents of an attempt begin together where nobody starts them together: each says that it is there, the first claims once all are.

A batch scheduler gives all nodes of a job at once. Pods are placed one by one, minutes apart: ranks that began at once would wait for the rest
until that looks like a hang. Until the claim nothing has begun, so an attempt whose last node does not come can still be withdrawn.
"""

import contextlib
import logging
import time

from cluster.agent.node import StopWish
from cluster.attempt import claim_attempt
from cluster.layout import AttemptLayout
from cluster.storage import AlreadyExistsError, Storage
from schemas.attempt import Claim
from schemas.job import JobSpec

logger = logging.getLogger(__name__)

_POLL_S = 0.5


def join(storage: Storage, attempt: AttemptLayout, *, spec: JobSpec, node_rank: int, submission: str, stop: StopWish) -> bool:
    """Waits until all nodes of the submission are there, as long as it takes; returns whether it has the attempt.

    Args:
        storage: shared storage.
        attempt: the attempt.
        spec: its spec.
        node_rank: this node; the first one claims.
        submission: token of this submission: only its agents are counted.
        stop: ends the wait.
    """
    with contextlib.suppress(AlreadyExistsError):  # an agent of this node that was ended before it began
        storage.create_exclusive(attempt.present(node_rank, submission=submission), b"{}\n")
    missing = set(range(spec.num_nodes)) if node_rank == 0 else set()
    while not storage.exists(attempt.claim):
        if stop.wish is not None:
            logger.info("%s before all nodes were there", stop.reason)
            return False
        missing = {node for node in missing if not storage.exists(attempt.present(node, submission=submission))}
        if node_rank == 0 and not missing:
            return claim_attempt(storage, attempt, key=spec.key, submission=submission)
        time.sleep(_POLL_S)
    return node_rank > 0 and Claim.model_validate_json(storage.read(attempt.claim)).submission == submission
