"""What ranks run in tests besides training itself; see rank_server.py."""

import errno
from pathlib import Path

import tasks.train.checkpoint.writer as writer_module
from cluster.storage import make_folder
from tasks.entry import RankTask
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.checkpoint.writer import CheckpointWriter, Snapshot
from tasks.train.job import run
from tasks.train.libraries import prepare_libraries
from tasks.train.session import open_session


def resave(task: RankTask) -> None:
    """Loads the newest checkpoint and writes it again, from this gang's layout, into the folder `{artifact}-resaved`. Trains nothing."""
    prepare_libraries(num_threads=1)
    session = open_session(task, options=None)
    store = CheckpointStore(task.output_dir.with_name(f"{task.output_dir.name}-resaved"))
    make_folder(store.artifact_dir)
    writer = CheckpointWriter(store, gang=session.engine.gang, epoch=task.spec.epoch, snapshot=Snapshot(session.tensors.owned()), model_config={})
    state = session.base_state.model_copy(update={"step": session.progress.step, "optimizer_step": session.progress.optimizer_step})
    assert writer.save(state)


def full_disk(task: RankTask) -> None:
    """Trains with a disk that is full while rank 1 saves step 2."""
    genuine = writer_module.write_durably

    def refuse(path: Path, data: bytes) -> None:
        if task.rank == 1 and path.name == "rank-0001.bin" and "step-00000002" in str(path):
            genuine(path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        genuine(path, data)

    writer_module.write_durably = refuse
    run(task)


def fp16_anyway(task: RankTask) -> None:
    """Trains in fp16 on a CPU without fp16 matrix units: torch emulates them."""
    prepare_libraries(num_threads=1)
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True
    run(task)
