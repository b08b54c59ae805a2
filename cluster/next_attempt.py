"""The spec of a job's next attempt: what was asked for, with a number and a key of its own, and what past attempts make it ask for.

Reads storage, decides nothing itself: how many nodes is `cluster.elastic`'s business, which ones `cluster.strikes`'.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from cluster.attempt import list_attempts, read_claim, read_exit, read_heartbeats, read_spec
from cluster.closing import is_to_close
from cluster.deadline import Costs, stop_s
from cluster.elastic import PastAttempt, next_ask
from cluster.layout import ArtifactLayout
from cluster.storage import Storage
from cluster.strikes import nodes_to_avoid, read_strikes
from schemas.attempt import Cause
from schemas.canonical import canonical_json
from schemas.job import JobSpec

_ITS_OWN: Mapping[str, Any] = {
    "attempt": 0,
    "key": "",
    "run_id": "",
    "scratch_dir": "",
    "intended_at": 0.0,
    "excluded_nodes": (),
    "measured_stop_s": 0.0,
}
"""What tells an attempt from its request, whatever was asked for."""
_OF_SIZE = ("num_nodes", "ranks_per_node", "withdraw_after_s", "smaller_because", "time_limit_s")
"""The same where attempts may have fewer nodes."""


def next_attempt(request: JobSpec, *, number: int, storage: Storage, now: float) -> JobSpec:
    """Returns the spec of attempt `number`.

    Args:
        request: the job.
        number: 0-based; all attempts before it have ended.
        storage: where they are.
        now: seconds since the Unix epoch.
    """
    layout, key = ArtifactLayout(request.artifact_key), f"{request.run_id}-{request.stage.value}-{secrets.token_hex(3)}"
    avoided = nodes_to_avoid(read_strikes(storage, layout, step_name=request.step_name), now=now)
    measured_s = read_stop_s(storage, layout, step_name=request.step_name)
    own: dict[str, Any] = {"attempt": number, "key": key, "intended_at": now, "excluded_nodes": avoided, "measured_stop_s": measured_s}
    if request.elastic is not None:
        past = read_past(storage, layout, step_name=request.step_name)
        ask = next_ask(request.elastic, past, time_limit_s=request.time_limit_s)
        sizes = (ask.shape.num_nodes, ask.shape.ranks_per_node, ask.withdraw_after_s, ask.because, ask.time_limit_s)
        own |= dict(zip(_OF_SIZE, sizes, strict=True))
    return request.model_copy(update={**own, "scratch_dir": f"{request.scratch_dir}/{key}"})


def is_of(spec: JobSpec, request: JobSpec) -> bool:
    """Whether an attempt is one of this request."""
    ours: dict[str, Any] = dict(_ITS_OWN)
    if spec.elastic is not None and spec.elastic == request.elastic:
        ours |= {name: getattr(request, name) for name in _OF_SIZE if spec.smaller_because or name != "time_limit_s"}
    return canonical_json(spec.model_copy(update=ours)) == canonical_json(request.model_copy(update=ours))


def read_stop_s(storage: Storage, layout: ArtifactLayout, *, step_name: str) -> float:
    """Returns how long a graceful stop may take, by what ranks of past attempts told last; 0: no save was measured."""
    costs = Costs()
    for number in list_attempts(storage, layout, step_name=step_name):
        costs = costs.seen(rank for beat in read_heartbeats(storage, layout.attempt(step_name, number)) for rank in beat.ranks)
    return 0.0 if costs.save_s is None else stop_s(costs, grace_s=0.0)


def read_past(storage: Storage, layout: ArtifactLayout, *, step_name: str) -> tuple[PastAttempt, ...]:
    """Returns what a job's attempts so far tell about its queue, oldest first."""
    past = []
    for number in list_attempts(storage, layout, step_name=step_name):
        attempt = layout.attempt(step_name, number)
        claim, ended = read_claim(storage, attempt), read_exit(storage, attempt)
        withdrawn = ended.message if ended is not None and ended.cause is Cause.QUEUE else ""
        nodes = read_spec(storage, attempt).num_nodes
        past.append(PastAttempt(nodes, has_begun=claim is not None and not is_to_close(claim), withdrawn=withdrawn))
    return tuple(past)
