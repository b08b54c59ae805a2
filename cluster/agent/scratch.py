"""The node-local folder of an attempt: what ranks write there and the agent reads. One folder per epoch.

{scratch_dir}/n0000/                     one node of one attempt
agent.log zygote.log modules.json
e000003/                             one start of ranks (or of items)
task.json                        what `--spec` names
progress-000001.json             replaced by rank (or item) 1
log-000001.txt                   its output
metrics-r0000.jsonl              appended by rank 0
notices-r0001.jsonl              appended by rank 1, when it has something to say
stacks-000001.txt                what rank 1 is doing, written when the agent asks
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from cluster.storage import entries_of
from schemas.job import JobSpec
from schemas.progress import RankProgress

_TAIL_BYTES = 64 << 10
_FATAL, _MODULES = "Fatal Python error:", "Extension modules:"
"""How faulthandler begins its report of a fatal signal, and its longest line, which tells nothing."""
_LINES_OF_REASON = 4
"""Lines before that report in which C++ says what it threw."""
_LOG = re.compile(r"^log-(\d{6})\.txt$")
_METRICS = re.compile(r"^metrics-r(\d{4})\.jsonl$")
_PROGRESS = re.compile(r"^progress-(\d{6})\.json$")
_NOTICES = re.compile(r"^notices-r(\d{4})\.jsonl$")


@dataclass(frozen=True)
class NodeScratch:
    """Paths of one node of one attempt."""

    folder: Path

    @classmethod
    def of(cls, spec: JobSpec, node_rank: int) -> "NodeScratch":
        """Returns that of a node of an attempt."""
        return cls(Path(spec.scratch_dir) / f"n{node_rank:04d}")

    @property
    def agent_log(self) -> Path:
        """The agent's own log."""
        return self.folder / "agent.log"

    @property
    def zygote_log(self) -> Path:
        """The zygote's log."""
        return self.folder / "zygote.log"

    @property
    def modules(self) -> Path:
        """What the first rank imported."""
        return self.folder / "modules.json"

    def epoch(self, epoch: int) -> "EpochScratch":
        """Returns the paths of an epoch."""
        return EpochScratch(self.folder / f"e{epoch:06d}")


@dataclass(frozen=True)
class EpochScratch:
    """Paths of one start of ranks."""

    folder: Path

    @property
    def task(self) -> Path:
        """The task spec."""
        return self.folder / "task.json"

    def log(self, rank: int) -> Path:
        """Returns the output of a rank or item."""
        return self.folder / f"log-{rank:06d}.txt"

    def logs(self) -> dict[int, Path]:
        """Returns the outputs by rank or item."""
        return self._matching(_LOG)

    def metrics(self) -> dict[int, Path]:
        """Returns the metrics files by rank."""
        return self._matching(_METRICS)

    def stacks(self, rank: int) -> Path:
        """Returns the file into which a rank writes its stacks."""
        return self.folder / f"stacks-{rank:06d}.txt"

    def notice(self, rank: int) -> Path:
        """Returns the file to which a rank appends its notices."""
        return self.folder / f"notices-r{rank:04d}.jsonl"

    def notices(self) -> dict[int, Path]:
        """Returns the notices files by rank."""
        return self._matching(_NOTICES)

    def progress(self) -> tuple[RankProgress, ...]:
        """Returns what ranks or items last said of themselves, by number. A file that makes no sense is passed over: the next one replaces it."""
        told = map(_read_progress, self._matching(_PROGRESS).values())
        return tuple(progress for progress in told if progress is not None)

    def progress_of(self, rank: int) -> RankProgress | None:
        """Returns what a rank or item last said of itself; None before it said anything that makes sense."""
        return _read_progress(self._progress(rank))

    def remove_progress(self, rank: int) -> None:
        """Removes what an item said of itself, once it has ended."""
        self._progress(rank).unlink(missing_ok=True)

    def _progress(self, rank: int) -> Path:
        return self.folder / f"progress-{rank:06d}.json"

    def tail(self, rank: int, *, lines: int) -> tuple[str, ...]:
        """Returns the last lines of an output, without blank ones at the end; of a process that aborted, those around the reason."""
        try:
            with self.log(rank).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ()
        return _last_words([line.rstrip() for line in text.rstrip().splitlines()], most=lines)

    def _matching(self, pattern: re.Pattern[str]) -> dict[int, Path]:
        found = ((pattern.match(path.name), path) for path in sorted(entries_of(self.folder)))
        return {int(match[1]): path for match, path in found if match}


def _read_progress(path: Path) -> RankProgress | None:
    try:
        return RankProgress.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _last_words(lines: list[str], *, most: int) -> tuple[str, ...]:
    """Returns the lines that tell why: the last ones, unless Python wrote a long stack after a library had said its reason."""
    fatal = next((index for index in reversed(range(len(lines))) if lines[index].startswith(_FATAL)), None)
    if fatal is None:
        return tuple(lines[-most:])
    from_reason = lines[max(0, fatal - _LINES_OF_REASON) :]
    return tuple([line for line in from_reason if not line.startswith(_MODULES)][:most])
