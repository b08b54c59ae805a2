"""Use of the node by a job's processes."""

import os

import psutil

from schemas.job import NodeUsage


class UsageMeter:
    """Measures the agent's descendants. One call per heartbeat."""

    def __init__(self) -> None:
        """Keeps the processes between calls: CPU use is a difference."""
        self._processes: dict[tuple[int, float], psutil.Process] = {}
        self._ended_read = 0
        self._ended_written = 0
        self._io: dict[tuple[int, float], tuple[int, int]] = {}

    def measure(self) -> NodeUsage:
        """Returns the use at this moment; CPU since the call before."""
        current = {(process.pid, process.create_time()): process for process in psutil.Process(os.getpid()).children(recursive=True)}
        for gone in self._processes.keys() - current.keys():
            read, written = self._io.pop(gone, (0, 0))
            self._ended_read += read
            self._ended_written += written
        self._processes = {key: self._processes.get(key, process) for key, process in current.items()}
        cpu_percent, memory = 0.0, 0
        for key, process in self._processes.items():
            try:
                with process.oneshot():
                    cpu_percent += process.cpu_percent(None)
                    memory += process.memory_info().rss
                    counters = process.io_counters()
                    self._io[key] = (counters.read_bytes, counters.write_bytes)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it ended between listing and asking
        return NodeUsage(
            cpu_percent=cpu_percent,
            memory_used_bytes=memory,
            memory_total_bytes=psutil.virtual_memory().total,
            read_bytes=self._ended_read + sum(read for read, _ in self._io.values()),
            written_bytes=self._ended_written + sum(written for _, written in self._io.values()),
        )
