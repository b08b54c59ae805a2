"""Peers' loaders over the same rows, globally shuffled, as int64 batches on the CPU. Runs in the peers' environments, one thread, no workers.

Usage: NAME make|check|warm|cold RAW_FILE FOLDER. `make` writes the peer's own format from the raw file of uint16 rows.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import images
import numpy as np
import torch
from measuring import BATCH, LENGTH, evict, measured, summary

ROWS_PER_FILE = 8192


def numpy_gather(raw: Path, folder: Path) -> Iterator[torch.Tensor]:
    """The least that there is to do: a permutation, a mapped file, a gather, a cast."""
    rows = np.memmap(raw, dtype="<u2", mode="r").reshape(-1, LENGTH)
    order = np.random.default_rng(1234).permutation(len(rows))
    for first in range(0, len(order), BATCH):
        yield torch.from_numpy(rows[order[first : first + BATCH]].astype(np.int64))


def datatrove(raw: Path, folder: Path) -> Iterator[torch.Tensor]:
    """`DatatroveFolderDataset` behind a shuffling `DataLoader`; an item has `seq_len + 1` ids."""
    from datatrove.utils.dataset import DatatroveFolderDataset
    from torch.utils.data import DataLoader

    dataset = DatatroveFolderDataset(str(folder), seq_len=LENGTH - 1, filename_pattern="*.ds", token_size=2)
    for batch in DataLoader(dataset, batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(1234)):
        yield batch["input_ids"]


def litdata(raw: Path, folder: Path) -> Iterator[torch.Tensor]:
    """`StreamingDataset` with `TokensLoader`, shuffled, behind its own loader."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    dataset = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=LENGTH), shuffle=True, drop_last=False)
    for batch in StreamingDataLoader(dataset, batch_size=BATCH):
        yield batch.long()


def mosaic(raw: Path, folder: Path) -> Iterator[torch.Tensor]:
    """`StreamingDataset` over MDS shards, shuffled, behind a `DataLoader`."""
    images.stand_in()
    from streaming.base import StreamingDataset
    from torch.utils.data import DataLoader

    dataset = StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=1234, batch_size=BATCH)
    for batch in DataLoader(dataset, batch_size=BATCH):
        yield batch["tokens"].long()


def make_datatrove(rows: np.ndarray, folder: Path) -> None:
    """Writes `.ds` files: ids, nothing else."""
    for number, first in enumerate(range(0, len(rows), ROWS_PER_FILE)):
        rows[first : first + ROWS_PER_FILE].tofile(folder / f"{number:05d}.ds")


def make_litdata(rows: np.ndarray, folder: Path) -> None:
    """Writes litdata's chunks of tokens."""
    from litdata import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=ROWS_PER_FILE * LENGTH, item_loader=TokensLoader(block_size=LENGTH))
    for index, row in enumerate(rows):
        writer[index] = torch.from_numpy(row.astype(np.uint16))
    writer.done()
    writer.merge()


def make_mosaic(rows: np.ndarray, folder: Path) -> None:
    """Writes MDS shards."""
    images.stand_in()
    from streaming.base import MDSWriter

    size = ROWS_PER_FILE * LENGTH * 2
    with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{LENGTH}"}, size_limit=size, exist_ok=True) as writer:
        for row in rows:
            writer.write({"tokens": row.astype(np.uint16)})


LOADERS: dict[str, Callable[[Path, Path], Iterator[torch.Tensor]]] = {
    "numpy gather": numpy_gather,
    "datatrove": datatrove,
    "litdata": litdata,
    "mosaicml-streaming": mosaic,
}
MAKERS: dict[str, Callable[[np.ndarray, Path], None]] = {"datatrove": make_datatrove, "litdata": make_litdata, "mosaicml-streaming": make_mosaic}


def main() -> None:
    """Makes a peer's files, or runs one pass over them."""
    name, mode, raw, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    if mode == "make":
        MAKERS[name](np.memmap(raw, dtype="<u2", mode="r").reshape(-1, LENGTH), folder)
        return
    if mode == "cold":
        evict(folder if name in MAKERS else raw.parent)
    keep: Callable[[torch.Tensor], Any] = summary if mode == "check" else len
    measured(lambda: [keep(batch) for batch in LOADERS[name](raw, folder)], facts=lambda kept: {"rows": kept if mode == "check" else sum(kept)})


if __name__ == "__main__":
    main()
