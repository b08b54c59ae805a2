"""The ranks that train together: how they meet, and the few numbers they agree on. Never a pickled object.

DeepSpeed moves weights and gradients; this module moves decisions (a stop flag, a loss, sizes and hashes of files), always
over gloo on the CPU, so a decision never waits for a GPU stream.
"""

import os
import socket
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore

_LOOPBACK = "lo"
_TIMEOUT = timedelta(seconds=1800)
"""Longest wait for the other ranks. The agent's watchdog knows who is to blame and acts long before: this is for a gang that nobody watches."""


class Gang:
    """This rank's place among the ranks, and their collectives."""

    def __init__(self, *, rank: int = 0, world_size: int = 1, local_rank: int = 0, device: torch.device | None = None) -> None:
        """Args: device: where this rank computes; CPU when absent. Collectives of more than one rank need `join` first."""
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self.device = device or torch.device("cpu")

    @classmethod
    def join(cls, *, rank: int, world_size: int, local_rank: int, epoch: int) -> "Gang":
        """Meets the other ranks at MASTER_ADDR:MASTER_PORT and returns this rank's place.

        The keys of the store carry the epoch: ranks of a dead start that read or write the same store cannot be mistaken for peers.
        Ranks of one machine listen on its loopback alone, those of several where rank 0's name leads: see `_listen`.
        """
        device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if host.startswith("127."):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
        listener = _listen(host, port) if rank == 0 else None
        store = TCPStore(host, port, world_size, is_master=rank == 0, timeout=_TIMEOUT, wait_for_workers=False, master_listen_fd=listener)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=PrefixStore(f"epoch-{epoch}", store), rank=rank, world_size=world_size, timeout=_TIMEOUT)
        return cls(rank=rank, world_size=world_size, local_rank=local_rank, device=device)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Returns the element-wise sums over all ranks, in fp64, equal on every rank."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(total)
        result: list[float] = total.tolist()
        return result

    def gather(self, values: Sequence[int]) -> list[list[int]]:
        """Returns every rank's 64-bit numbers, by rank. All ranks pass equally many. Also a barrier."""
        own = torch.tensor(values, dtype=torch.int64)
        if self.world_size == 1:
            return [own.tolist()]
        rows = torch.empty(self.world_size * own.numel(), dtype=torch.int64)
        dist.all_gather_into_tensor(rows, own)
        gathered: list[list[int]] = rows.view(self.world_size, -1).tolist()
        return gathered

    def all(self, condition: bool) -> bool:
        """Whether `condition` holds on every rank; the same answer on every rank. Also a barrier."""
        return all(flag for (flag,) in self.gather([int(condition)]))


def _listen(host: str, port: int) -> int | None:
    """Listens where the other ranks look for rank 0, and nowhere else: by itself the store, which asks nobody who they are, listens everywhere.

    Returns the socket; None where only that is left: this node's own name leads it to itself (Debian's 127.0.1.1), and others elsewhere.
    """
    address = socket.gethostbyname(host)
    if address != host and address.startswith("127.0."):
        return None
    return socket.create_server((address, port)).detach()
