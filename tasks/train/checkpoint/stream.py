"""The writer process of a rank: `python -m tasks.train.checkpoint.stream --socket FD --buffer FD --size BYTES --parent PID`.

It makes snapshots durable while training goes on, and beside rank 0 it commits them and removes old ones. It shares the rank's buffer,
dies with the rank, and is killed with it. It knows no torch, and imports pydantic only where it commits: it starts in milliseconds.

One request is served at a time, in order. Whatever fails is said to the rank, which decides with its peers what follows.
"""

import argparse
import contextlib
import ctypes
import errno
import json
import logging
import mmap
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from cluster.agent.wire import die_with_parent, set_process_name
from cluster.durable import make_folder, stream_durably, sync_folder, write_durably
from tasks.train.checkpoint.channel import Channel, Commit, Committed, Describe, Discard, Failed, Forget, Reply, Request, Write, Written
from tasks.train.checkpoint.files import data_name, index_name, own_state_name

if TYPE_CHECKING:
    from tasks.train.checkpoint.committer import Committer
    from tasks.train.checkpoint.local_tier import LocalTier

logger = logging.getLogger(__name__)

_NICENESS = 10
"""Training goes first where there are fewer cores than processes: writing needs little time on a processor, and has minutes."""
_SPARE_BYTES = 1 << 20
"""What a checkpoint needs beyond the fragments: index, state, commit, the file system's own."""
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Schedulers send these to every process of a job; the rank hears them, and needs its writer to stop well."""


class Writer:
    """Serves the requests of one rank."""

    def __init__(self, description: Describe, buffer: memoryview) -> None:
        """Args: buffer: the rank's snapshot; page-aligned, and pages long."""
        self._description, self._buffer = description, buffer
        self._artifact_dir = Path(description.artifact_dir)
        self._size = sum(fragment["count"] * 4 for fragment in description.index["fragments"])
        self._committer: Committer | None = None

    def serve(self, request: Request) -> Reply | None:
        """Does what is asked. What follows a reply is in `tidy`. Raises OSError, and whatever else a bug raises."""
        match request:
            case Write():
                return self._write(request)
            case Commit():
                self._lead().commit(request)
                return Committed(request.step)
            case Discard():
                self._lead().discard(request.step, request.folder)
            case Forget():
                self._local_tier().forget(self._description.rank)
        return None

    def tidy(self, request: Request) -> None:
        """Does what nobody waits for: old checkpoints go."""
        if isinstance(request, Commit):
            self._lead().tidy()
        if isinstance(request, Write) and request.local is not None:
            self._local_tier().thin(self._description.rank, below=request.local.keep_from)

    def _write(self, request: Write) -> Written:
        """Makes the snapshot durable: data, index, folder. What failed is removed, as far as the file system lets it."""
        began = time.perf_counter()
        rank, root = self._description.rank, self._artifact_dir if request.local is None else self._local_tier().folder
        folder = root / request.folder
        make_folder(root)
        check_space(root, self._size + _SPARE_BYTES)
        small = {index_name(rank): self._description.index | {"rng": request.rng}}
        if request.local is not None:
            small[own_state_name(rank)] = request.local.state
        try:
            make_folder(folder)
            digest = stream_durably(folder / data_name(rank), self._buffer, size=self._size)
            files = [{"path": data_name(rank), "size": self._size, "xxh3": digest}]
            files += [_write_json(folder, name, value) for name, value in small.items()]
            sync_folder(folder)
            if request.local is not None:
                self._publish_record(request, files)
        except FileExistsError:  # written before, and perhaps committed
            raise
        except OSError:
            for name in (data_name(rank), *small):
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
            raise
        return Written(request.step, files=files[:2], seconds=time.perf_counter() - began)

    def _publish_record(self, request: Write, files: list[dict[str, Any]]) -> None:
        """Says on the node's own disk that this rank's share is durable."""
        from schemas.checkpoint import LocalRecord

        index = self._description.index
        place = {"step": request.step, "epoch": self._description.epoch, "rank": index["rank"], "world_size": index["world_size"]}
        self._local_tier().publish(LocalRecord.model_validate({**place, "folder": request.folder, "files": files}))

    def _local_tier(self) -> "LocalTier":
        """Returns the node-local tier; the first call imports it."""
        from tasks.train.checkpoint.local_tier import LocalTier

        assert self._description.local_dir is not None
        return LocalTier(Path(self._description.local_dir))

    def _lead(self) -> "Committer":
        """Returns what commits; the first call imports it."""
        if self._committer is None:
            from tasks.train.checkpoint.committer import Committer, Lead

            assert self._description.lead is not None, "only the writer of rank 0 commits"
            self._committer = Committer(self._artifact_dir, epoch=self._description.epoch, lead=Lead.model_validate(self._description.lead))
        return self._committer


def check_space(folder: Path, num_bytes: int) -> None:
    """Raises OSError (ENOSPC) with the figures when the file system of `folder` has no room for as much, before anything is written."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < num_bytes:
        raise OSError(errno.ENOSPC, f"{num_bytes:,} bytes are needed and {free:,} are free", str(folder))


def _write_json(folder: Path, name: str, value: dict[str, Any]) -> dict[str, Any]:
    """Writes a small file durably and returns its entry."""
    data = _canonical(value)
    write_durably(folder / name, data)
    return {"path": name, "size": len(data), "xxh3": xxhash.xxh3_128(data).hexdigest()}


def _canonical(value: dict[str, Any]) -> bytes:
    """Returns what `schemas.canonical.canonical_json` does for plain data, without its import of pydantic."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def run(channel: Channel, buffer: memoryview) -> None:
    """Serves a rank until it closes its end."""
    requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
    threading.Thread(target=_take_in, args=(channel, requests), name="requests", daemon=True).start()
    description = requests.get()
    if description is None:
        return
    assert isinstance(description, Describe)
    set_process_name(f"writer {description.rank}")
    writer = Writer(description, buffer)
    while (request := requests.get()) is not None:
        try:
            reply = writer.serve(request)
        except Exception as error:  # the process's outermost edge: the rank hears of it, and training goes on
            if not isinstance(error, OSError):
                logger.exception("%s failed", type(request).__name__)
            elif isinstance(request, Forget):  # nobody listens any more
                logger.warning("node-local checkpoints stay: %s", error)
            if not isinstance(request, Describe):
                channel.send(Failed(request.step, reason=str(error) or type(error).__name__))
            continue
        if reply is not None:
            channel.send(reply)
        try:
            writer.tidy(request)
        except OSError as error:
            logger.warning("old checkpoints stay for now: %s", error)


def _take_in(channel: Channel, requests: "queue.SimpleQueue[Request | None]") -> None:
    """Reads at once, so that the rank never waits for this process; None: the rank closed its end."""
    try:
        for message in channel.receive():
            requests.put(message)
    finally:
        requests.put(None)


def map_buffer(descriptor: int, size: int) -> mmap.mmap:
    """Returns the shared buffer, with its pages mapped: a direct write looks each of them up."""
    buffer = mmap.mmap(descriptor, size)
    prefault(buffer)
    return buffer


def prefault(buffer: mmap.mmap) -> None:
    """Lets the kernel allocate and map all pages of `buffer`, huge ones where it has them (Linux 5.14). Keeps what is in them."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    libc = ctypes.CDLL(None)
    for advice in (_MADV_HUGEPAGE, _MADV_POPULATE_WRITE):  # a kernel that refuses one pays later, page by page
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(len(buffer)), advice)


_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23
"""Of linux/mman.h."""


def main() -> None:
    """Serves the rank that started this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("socket", "buffer", "size", "parent"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(arguments.parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    os.nice(_NICENESS)
    buffer = map_buffer(arguments.buffer, arguments.size)
    run(Channel(socket.socket(fileno=arguments.socket)), memoryview(buffer))


if __name__ == "__main__":
    main()
