"""What ranks run in tests besides training itself; see rank_server.py."""

import os
import time
from pathlib import Path
from typing import Any

import torch

import tasks.train.checkpoint.process as process_module
from cluster.storage import make_folder
from tasks.entry import RankTask
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.checkpoint.fragments import TrainingTensors
from tasks.train.checkpoint.reader import CheckpointReader
from tasks.train.checkpoint.snapshot import Snapshot
from tasks.train.checkpoint.writer import CheckpointFacts, CheckpointWriter
from tasks.train.data import TrainingBatches
from tasks.train.job import run
from tasks.train.libraries import prepare_libraries
from tasks.train.session import open_session

_HELD_S = 120.0
"""A rank that nobody lets go, because its test is gone."""


def resave(task: RankTask) -> None:
    """Loads the newest checkpoint and writes it again, from this gang's layout, into the folder `{artifact}-resaved`. Trains nothing."""
    prepare_libraries(num_threads=1)
    session = open_session(task, options=None)
    store = CheckpointStore(task.output_dir.with_name(f"{task.output_dir.name}-resaved"))
    make_folder(store.artifact_dir)
    facts = CheckpointFacts(session.base_state, model_config={}, rules=task.config.checkpoint, shared_steps=0, verified_step=None)
    writer = CheckpointWriter(
        store, gang=session.engine.gang, epoch=task.spec.epoch, snapshot=Snapshot(session.tensors.owned()), facts=facts, tell=task.notice
    )
    state = session.base_state.model_copy(update={"step": session.progress.step, "optimizer_step": session.progress.optimizer_step})
    writer.begin(state)
    writer.settle(on_wait=lambda: None)
    assert writer.committed_step == state.step
    writer.close()


def full_disk(task: RankTask) -> None:
    """Trains with a disk that is full while rank 1 saves step 2."""
    if task.rank == 1:
        fail_in_writer("pwrite", step=2)
    run(task)


def slow_disk(task: RankTask) -> None:
    """Trains with storage that takes as long for a checkpoint as training does for some steps."""
    fail_in_writer("slow", step=0)
    run(task)


def crash_in_writer(task: RankTask) -> None:
    """Trains until one rank and its writer end at once, before one of the writer's file events: options `crash_rank` and `crash_at`."""
    if task.rank == task.options["crash_rank"]:
        os.environ["FAULTY_ROOT"] = str(task.output_dir)
        fail_in_writer("crash", step=task.options["crash_at"])
    run(task)


def held(task: RankTask) -> None:
    """Trains; the rank of the option `held_rank` waits before the step after `held_at` others, where it leaves the file `held`, for the file `go`."""
    at, folder = TrainingBatches.at, Path(task.spec.scratch_dir)

    def wait_at(self: TrainingBatches, step: int) -> Any:
        if step >= task.options["held_at"]:
            (folder / "held").touch()
            deadline = time.monotonic() + _HELD_S
            while not (folder / "go").exists() and time.monotonic() < deadline:
                time.sleep(0.005)
        return at(self, step)

    if task.rank == task.options["held_rank"]:
        TrainingBatches.at = wait_at  # type: ignore[method-assign]
    run(task)


def fail_in_writer(call: str, *, step: int) -> None:
    """Lets a call of the writer process's operating system fail, for files of one step; see faulty_stream.py."""
    os.environ["FAULTY_CALL"], os.environ["FAULTY_STEP"] = call, str(step)
    process_module.PROGRAM = (str(Path(__file__).with_name("faulty_stream.py")),)


def fp16_anyway(task: RankTask) -> None:
    """Trains in fp16 on a CPU without fp16 matrix units: torch emulates them."""
    prepare_libraries(num_threads=1)
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True
    run(task)


def one_bit_off(task: RankTask) -> None:
    """Trains from a checkpoint of which one element is not loaded as it was written."""
    load = CheckpointReader.load

    def load_wrongly(self: CheckpointReader, tensors: TrainingTensors) -> None:
        load(self, tensors)
        value = tensors.held[-1].slots["exp_avg_sq"].view(torch.int32)
        value[-1] ^= 1

    CheckpointReader.load = load_wrongly  # type: ignore[method-assign]
    run(task)
