"""What ranks run in tests of numbers; see rank_server.py."""

import json
from typing import Any

import torch
import xxhash

from schemas.checkpoint import SLOTS
from schemas.errors import CorruptStateError
from tasks.entry import RankTask
from tasks.train.libraries import prepare_libraries
from tasks.train.loop import Session
from tasks.train.session import open_session

RATE = 0.01


def drop(task: RankTask) -> None:
    """Drops the gradients of two batches, then updates with those of a third."""
    session = _session(task)
    told: dict[str, Any] = {"at first": _hash(session)}
    _accumulate(session, step=0)
    session.engine.skip()
    told["after skip"] = _hash(session)
    _accumulate(session, step=1, bad=task.rank == 1)
    told["applied with bad gradients"] = session.engine.step(learning_rate=RATE).applied
    told["after bad gradients"] = _hash(session)
    _finish(task, session, told)


def update(task: RankTask) -> None:
    """Updates with the gradients of the third batch alone."""
    _finish(task, _session(task), {})


def disagree(task: RankTask) -> None:
    """Changes what rank 1 has a copy of, where no other check sees it: the norm at the end, whose master lies with the other rank or is cut."""
    session = _session(task)
    session.weights.after_update(4)
    told = {"before": _said(session)}
    parameter = session.engine.module.get_parameter("model.norm.weight")
    if task.rank == 0:
        parameter.data.view(-1)[-1 if session.engine.zero_stage == 3 else 0] += 1.0
    session.tensors.stale_parameters = lambda: ()  # type: ignore[method-assign]  # would name the rank that holds the master first
    told["after"] = _said(session)
    _tell(task, told)


def _said(session: Session) -> str:
    try:
        session.weights.before_save()
    except CorruptStateError as error:
        return str(error)
    return ""


def _session(task: RankTask) -> Session:
    prepare_libraries(num_threads=1)
    return open_session(task, options=None)


def _accumulate(session: Session, *, step: int, bad: bool = False) -> None:
    session.engine.seed(step)
    batches = session.batches.at(step)
    for position, batch in enumerate(batches):
        loss = session.engine.loss(batch)
        if bad:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        session.engine.backward(loss, last=position == len(batches) - 1)


def _finish(task: RankTask, session: Session, told: dict[str, Any]) -> None:
    _accumulate(session, step=2)
    told["applied"] = session.engine.step(learning_rate=RATE).applied
    told["after an update"] = _hash(session)
    _tell(task, told)


def _tell(task: RankTask, told: dict[str, Any]) -> None:
    (task.output_dir / f"told-{task.rank}.json").write_text(json.dumps(told))


def _hash(session: Session) -> str:
    """Hash of everything that this rank holds: masters, moments and parameters, bit for bit."""
    digest = xxhash.xxh3_128()
    for fragment in session.tensors.held:
        for tensor in (*(fragment.slots[slot] for slot in SLOTS), fragment.low_precision):
            digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
