"""Seeded damage to a committed checkpoint: single bits flipped, files cut short, emptied, removed; undone again."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.layout import step_name

Kind = Literal["bit", "truncated", "empty", "missing"]


@dataclass(frozen=True)
class Damage:
    """One damage to one file of a checkpoint, or to its commit."""

    path: Path
    kind: Kind
    position: int
    """The bit that is flipped, or the length that is left."""
    commit: Path
    commit_bytes: bytes

    @contextmanager
    def done(self) -> Iterator[None]:
        """Does it, and undoes it."""
        size = self.path.stat().st_size
        if self.kind == "bit":
            self._flip()
            yield
            if self.path.exists():
                self._flip()
            return
        kept = self.path.with_name(f".kept-{self.path.name}")
        self.path.rename(kept)
        if self.kind != "missing":
            length = 0 if self.kind == "empty" else self.position % max(1, size)
            with kept.open("rb") as file:
                self.path.write_bytes(file.read(length))
        yield
        self.path.unlink(missing_ok=True)
        kept.rename(self.path)

    def restore_commit(self) -> None:
        """Puts the commit back as it was: who finds the damage withdraws it."""
        self.commit.write_bytes(self.commit_bytes)

    def _flip(self) -> None:
        with self.path.open("r+b") as file:
            file.seek(self.position // 8)
            (byte,) = file.read(1)
            file.seek(self.position // 8)
            file.write(bytes([byte ^ (1 << self.position % 8)]))


def damaged_places(artifact_dir: Path, *, step: int, count: int, seed: int) -> Iterator[Damage]:
    """Yields damages spread over all files of a checkpoint and its commit; three of four flip a bit."""
    chance = random.Random(seed)
    commit = artifact_dir / "commits" / f"{step_name(step)}.json"
    (folder,) = artifact_dir.glob(f"checkpoints/{step_name(step)}.e*")
    files = [commit, *sorted(folder.iterdir())]
    content = commit.read_bytes()
    for number in range(count):
        path = files[number % len(files)]
        kind: Kind = "bit" if number % 4 else chance.choice(("truncated", "empty", "missing"))
        if path == commit and kind == "missing":
            kind = "empty"  # a commit that is missing is none: nobody promised that step
        yield Damage(path, kind, chance.randrange(path.stat().st_size * 8), commit, content)
