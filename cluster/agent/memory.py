"""Whether the kernel's OOM killer struck in this job's control group: a SIGKILL alone does not say who sent it."""

import re
import time
from pathlib import Path

_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_GENERATION_S = 2.0


class OomWatch:
    """Compares the kernel's count of OOM kills with what it was a few seconds ago."""

    def __init__(self, files: tuple[Path, ...] | None = None) -> None:
        """Args: files: where the kernel counts; default: this process's control group, or the whole machine."""
        self._files = counters() if files is None else files
        self._older = self._newer = self._count()
        self._looked_at = time.monotonic()

    def look(self) -> None:
        """Remembers the count; called every so often while all is well."""
        if time.monotonic() - self._looked_at > _GENERATION_S:
            self._older, self._newer, self._looked_at = self._newer, self._count(), time.monotonic()

    def struck(self) -> bool:
        """Whether there were OOM kills in the last few seconds."""
        return self._count() > self._older

    def _count(self) -> int:
        total = 0
        for file in self._files:
            try:
                match = _KILLS.search(file.read_text())
            except OSError:
                continue  # the group went away, or may not be read: nothing is known then
            total += int(match[1]) if match else 0
        return total


def counters(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> tuple[Path, ...]:
    """Returns the files in which the kernel counts OOM kills of this process's control group (v2 or v1), else of the machine; none outside Linux."""
    membership = proc / "self" / "cgroup"
    if not membership.exists():
        return ()
    found = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            group = groups / path.lstrip("/")
            own_count = group / "memory.events.local"  # the other one adds up whatever was killed in groups below
            found.append(own_count if own_count.exists() else group / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(groups / "memory" / path.lstrip("/") / "memory.oom_control")
    own = tuple(file for file in found if file.exists())
    return own or tuple(file for file in (proc / "vmstat",) if file.exists())
