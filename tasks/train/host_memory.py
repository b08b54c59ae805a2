"""Memory for batches on the host: page-locked where they go to a GPU, so that copies run beside the computing; ordinary on the CPU.

Rows are gathered straight into it. Page-locked blocks come from torch's own cache of them, which hands a block out again only when
the copies from it have ended (it notes an event for every asynchronous one), so after the first steps nothing is locked any more.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class HostMemory:
    """Where batches are put together."""

    device: torch.device
    """Where they go."""

    @property
    def is_pinned(self) -> bool:
        """Whether it is page-locked: a copy from ordinary memory to a GPU is not asynchronous, whatever is asked for."""
        return self.device.type == "cuda"

    def bind(self) -> None:
        """Prepares a thread that is to allocate: it locks pages by way of a device, which would else be the first, on every rank of a node."""
        if self.is_pinned:
            torch.cuda.set_device(self.device)

    def empty(self, *shape: int) -> torch.Tensor:
        """Returns an int64 tensor of this shape, its content undefined."""
        return torch.empty(shape, dtype=torch.int64, pin_memory=self.is_pinned)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a copy of an int64 tensor."""
        return self.empty(*tensor.shape).copy_(tensor)


PAGEABLE = HostMemory(torch.device("cpu"))
"""Ordinary memory."""
