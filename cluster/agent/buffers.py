"""Anonymous memory of each rank that the agent keeps from one start to the next.

Memory that a process takes anew costs the kernel, and below it a hypervisor, far more than copying into it: a rank that finds the pages
of its predecessor loads a checkpoint several times as fast. What they hold means nothing to it.
"""

import os

from cluster.environment import BUFFER


class RankBuffers:
    """One buffer per rank of this node. Without a name in any file system: nothing is left behind, whoever dies."""

    def __init__(self) -> None:
        """Takes no memory yet: ranks set the sizes."""
        self._files: dict[int, int] = {}

    def variables(self, local_rank: int) -> dict[str, str]:
        """Returns what tells a rank its buffer; nothing where the system has no such memory."""
        if not hasattr(os, "memfd_create"):
            return {}
        if local_rank not in self._files:
            self._files[local_rank] = os.memfd_create(f"headrace-buffer-{local_rank}", os.MFD_CLOEXEC)
        return {BUFFER: f"/proc/{os.getpid()}/fd/{self._files[local_rank]}"}
