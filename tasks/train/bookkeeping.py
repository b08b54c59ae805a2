"""Reads a training's journal from storage and returns its goodput ledger. Reads little: a few metric segments per start of ranks."""

from dataclasses import replace

from cluster.acts import read_acts
from cluster.attempt import list_attempts, read_claim, read_exit, read_heartbeats, read_incidents, read_spec, read_submitted, read_verdict
from cluster.closing import is_to_close
from cluster.epoch import newest_epoch, read_epochs
from cluster.layout import ArtifactLayout
from cluster.metrics import MetricEdges
from cluster.storage import AlreadyExistsError, Storage
from schemas.canonical import canonical_json
from schemas.ledger import GoodputLedger
from tasks.train.ledger import AttemptTimes, EpochTimes, account, counted_steps


def read_ledger(storage: Storage, layout: ArtifactLayout, *, now: float) -> GoodputLedger | None:
    """Returns the ledger of a training artifact as of now, or None before its first job was wished for.

    Args:
        now: seconds since the Unix epoch.
    """
    attempts = tuple(_attempt_times(storage, layout, number) for number in list_attempts(storage, layout, step_name=""))
    if not attempts:
        return None
    edges = MetricEdges(storage, layout)
    epochs = []
    for record in read_epochs(storage, layout):
        last = edges.last(record.epoch)
        epochs.append(EpochTimes(record, points=(last,) if last is not None and last.seconds else ()))
    incidents = {incident.epoch: incident for attempt in attempts for incident in attempt.incidents}
    counted = counted_steps(epochs, incidents)
    for index, epoch in enumerate(epochs):
        if epoch.points and counted[epoch.record.epoch] < epoch.points[-1].step:
            around = edges.around(epoch.record.epoch, counted[epoch.record.epoch])
            epochs[index] = replace(epoch, points=(*around, epoch.points[-1]))
    acts = tuple(str(act) for act in read_acts(storage, layout))
    return account(attempts, epochs, now=now).model_copy(update={"acts": acts})


def keep_ledger(storage: Storage, layout: ArtifactLayout, *, now: float) -> GoodputLedger | None:
    """Writes the ledger of a training that is done beside it, once per newest start, and returns the one that is kept. None without any job.

    Args:
        now: seconds since the Unix epoch.
    """
    ledger = read_ledger(storage, layout, now=now)
    if ledger is None:
        return None
    key = layout.goodput(max(0, newest_epoch(storage, layout)))
    try:
        storage.create_exclusive(key, canonical_json(ledger))
    except AlreadyExistsError:  # a control process before this one got as far, and died before the record
        return GoodputLedger.model_validate_json(storage.read(key))
    return ledger


def _attempt_times(storage: Storage, layout: ArtifactLayout, number: int) -> AttemptTimes:
    attempt = layout.attempt("", number)
    spec, claim, ended = read_spec(storage, attempt), read_claim(storage, attempt), read_exit(storage, attempt)
    if claim is not None and is_to_close(claim):  # it never began: all its time was spent in the queue
        claim = None
    submitted, verdict = read_submitted(storage, attempt), read_verdict(storage, attempt)
    known = [at for at in (spec.intended_at, submitted.at if submitted else 0.0, claim.claimed_at if claim else 0.0) if at]
    return AttemptTimes(
        number=number,
        intended_at=min(known, default=ended.ended_at if ended else 0.0),
        claimed_at=claim.claimed_at if claim else None,
        seen_at=max((beat.at for beat in read_heartbeats(storage, attempt)), default=0.0),
        ended_at=ended.ended_at if ended else None,
        looked_at=verdict.at if verdict else None,
        goes_on=verdict is not None and verdict.decision == "restart",
        lost_after_s=spec.lost_after_s,
        incidents=ended.incidents if ended else read_incidents(storage, attempt),
    )
