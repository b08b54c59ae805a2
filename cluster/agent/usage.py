"""Use of the node by a job's processes."""

import os

import psutil

from schemas.progress import NodeUsage


class UsageMeter:
    """Measures the agent's descendants. One call per heartbeat, about 4 ms of CPU time."""

    def __init__(self) -> None:
        """Keeps the processes between calls: CPU use is a difference."""
        self._processes: dict[int, psutil.Process] = {}
        self._io: dict[int, tuple[int, int]] = {}
        """Bytes read and written by live processes."""
        self._ended_io = (0, 0)
        """The same by processes that have ended, as last seen."""

    def measure(self) -> NodeUsage:
        """Returns the use at this moment; CPU since the call before."""
        current = {process.pid: process for process in psutil.Process(os.getpid()).children(recursive=True)}
        for pid in [pid for pid, process in self._processes.items() if current.get(pid) != process]:  # equal: same pid, same start
            self._forget(pid)
        cpu_percent, memory = 0.0, 0
        for pid, found in current.items():
            process = self._processes.setdefault(pid, found)
            try:
                with process.oneshot():
                    cpu_percent += process.cpu_percent(None)
                    memory += process.memory_info().rss
                    counters = process.io_counters()
                    self._io[pid] = (counters.read_bytes, counters.write_bytes)
            except (psutil.NoSuchProcess, psutil.AccessDenied, RuntimeError, ValueError):
                continue  # it ended between listing and asking; as it ends, its files in /proc may be empty, for which psutil 7.2 has no error
        return NodeUsage(
            cpu_percent=cpu_percent,
            memory_used_bytes=memory,
            memory_total_bytes=psutil.virtual_memory().total,
            read_bytes=self._ended_io[0] + sum(read for read, _ in self._io.values()),
            written_bytes=self._ended_io[1] + sum(written for _, written in self._io.values()),
        )

    def _forget(self, pid: int) -> None:
        del self._processes[pid]
        read, written = self._io.pop(pid, (0, 0))
        self._ended_io = (self._ended_io[0] + read, self._ended_io[1] + written)
