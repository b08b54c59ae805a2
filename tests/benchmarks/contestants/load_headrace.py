"""One pass over our shards in the order of training, as micro-batches on the CPU. Usage: SHARDS_FOLDER check|warm|cold."""

import sys
from pathlib import Path
from typing import Any

import torch

from tasks.tokenize.megatron import open_manifest
from tasks.tokenize.shard_reader import ShardReader
from tasks.train.data import BatchSource, TrainingBatches
from tasks.train.order import GlobalOrder
from tests.benchmarks.contestants.measuring import BATCH, STEP, evict, measured, summary


def main() -> None:
    """Runs one pass."""
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    if mode == "cold":
        evict(folder)

    def work() -> list[Any]:
        manifest = open_manifest(folder)
        source = BatchSource(ShardReader(manifest, folder=folder, split="train"), manifest=manifest, split="train")
        order = GlobalOrder(source.num_sequences, 1234)
        batches = TrainingBatches(source, order=order, global_batch_size=STEP, micro_batch_size=BATCH, rank=0, world_size=1)
        kept = [keep(batch.tokens) for step in range(source.num_sequences // STEP) for batch in batches.at(step)]
        batches.close()
        return kept

    keep = summary if mode == "check" else len
    measured(work, facts=lambda kept: {"rows": kept if mode == "check" else sum(kept)})


if __name__ == "__main__":
    main()
