"""Programs that measure themselves: imports and start-up of an interpreter are nobody's merit. Standard library alone: peers' environments run it."""

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of the children that it waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measured(work: Callable[[], Any], *, facts: Callable[[Any], dict[str, Any]]) -> None:
    """Runs `work`, and prints one JSON object: what it cost, and `facts` of its result, which are gathered off the clock."""
    cpu, started = cpu_seconds(), time.perf_counter()
    result = work()
    wall_s, cpu_s = time.perf_counter() - started, cpu_seconds() - cpu
    sys.stdout.write("\n" + json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, **facts(result)}) + "\n")
    sys.stdout.flush()


def hash_of(pieces: Iterable[bytes]) -> str:
    """Returns the hash of all pieces, one after the other."""
    state = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        state.update(piece)
    return state.hexdigest()


# ---- loaders --------------------------------------------------------------------------------------------------------------

LENGTH, BATCH, STEP = 1024, 64, 512
"""Tokens of a row, rows of a batch, rows of an update: eight batches, as gradient accumulation has them."""


def evict(folder: Path) -> None:
    """Asks the kernel to forget the cached pages of all files below a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def summary(batch: Any) -> list[list[int]]:
    """Returns for each row of a batch of int64 [B, L] its number, which its first two ids hold, and the sum of its ids."""
    assert str(batch.dtype) == "torch.int64", batch.dtype
    assert tuple(batch.shape) == (BATCH, LENGTH), batch.shape
    return list(map(list, zip((batch[:, 0] + (batch[:, 1] << 16)).tolist(), batch.sum(1).tolist(), strict=True)))


def peak_mb() -> float:
    """Returns the most memory that this process has had resident, in million bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
