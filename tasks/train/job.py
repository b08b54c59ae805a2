"""The compute half of `train`: one rank. `python -m tasks.train.job --spec FILE`, with RANK, WORLD_SIZE, … in the environment.

Options (from `tasks.train.build`): `deepspeed` (the raw section, where the recipe names a JSON file), `manifest` and `tokenizer` (entries of the
inputs' files), `outside_files` (entries of what a pretrained model or a factory's source consists of): every byte that is read is checked first.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from schemas.frozen import thaw
from schemas.progress import RankPhase
from tasks.entry import RankTask, rank_main

logger = logging.getLogger(__name__)


def run(task: RankTask) -> None:
    """Trains to the last step, from the newest verified checkpoint. Errors are those of `prepare` and `train`."""
    began = time.perf_counter()
    task.progress(RankPhase.STARTING)
    from tasks.train.libraries import prepare_libraries

    prepare_libraries(num_threads=task.spec.job.threads_per_rank, deterministic=task.config.training.deterministic)
    from tasks.train.loop import train
    from tasks.train.session import open_session

    session = open_session(task, options=_deepspeed_options(task))
    logger.info("rank %d of %d is ready at step %d after %.2f s", task.rank, task.world_size, session.progress.step, time.perf_counter() - began)
    train(session)
    task.progress(RankPhase.FINISHED, step=session.progress.step, committed_step=session.progress.committed_step, total_steps=session.total_steps)


def _deepspeed_options(task: RankTask) -> Mapping[str, Any] | None:
    options = task.options.get("deepspeed")
    return thaw(options) if options is not None else None


def main() -> NoReturn:
    """Runs one rank and exits with an `ExitCode`."""
    rank_main(run)


if __name__ == "__main__":
    main()
