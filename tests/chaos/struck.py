"""Which faults have struck, and when: one small file each, in the project's folder of a training, so that every process and every epoch sees it.

`003-0001`: fault 3 struck for the second time; holds seconds since the Unix epoch, and the epoch of the ranks. `003-go`: the test lets
fault 3's rank go on. `entered-e000002-r0001`: rank 1 entered its first step in epoch 2.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path


class Struck:
    """The strikes of one training."""

    def __init__(self, project: Path) -> None:
        """Args: project: the training's project folder."""
        self.folder = project / "struck"
        self.folder.mkdir(exist_ok=True)

    def take_turn(self, number: int, *, times: int, epoch: int) -> bool:
        """Whether fault `number` strikes once more, of `times` in all (0: always); leaves word of it. Of several processes one gets each turn."""
        past = self.count(number)
        word = self.folder / f".{os.getpid()}-{threading.get_ident()}"
        word.write_text(f"{time.time()!r} {epoch}")
        try:
            while not times or past < times:
                with contextlib.suppress(FileExistsError):
                    os.link(word, self._mark(number, past))  # with its content, at once
                    return True
                past += 1
            return False
        finally:
            word.unlink()

    def count(self, number: int) -> int:
        """How often fault `number` has struck."""
        return len(list(self.folder.glob(f"{number:03d}-[0-9]*")))

    def struck_before(self, number: int, *, epoch: int) -> bool:
        """Whether fault `number` struck in an earlier epoch."""
        return any(int(path.read_text().split()[1]) < epoch for path in self.folder.glob(f"{number:03d}-[0-9]*"))

    def times(self, number: int | None = None) -> list[float]:
        """When faults struck, or the one fault, ascending, seconds since the Unix epoch."""
        marks = self.folder.glob("[0-9]*-[0-9]*" if number is None else f"{number:03d}-[0-9]*")
        return sorted(float(path.read_text().split()[0]) for path in marks)

    def let_go(self, number: int) -> None:
        """Lets the rank that fault `number` holds, or slows, go on."""
        (self.folder / f"{number:03d}-go").touch()

    def may_go(self, number: int) -> bool:
        """Whether `let_go` was called for fault `number`."""
        return (self.folder / f"{number:03d}-go").exists()

    def pause(self, number: int, *, most_s: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Waits until `let_go`. `meanwhile` is called again and again."""
        deadline = time.monotonic() + most_s
        while not self.may_go(number) and time.monotonic() < deadline:
            meanwhile()
            time.sleep(0.005)

    def enter(self, *, epoch: int, rank: int) -> None:
        """Notes that a rank enters its first step in an epoch."""
        (self.folder / f"entered-e{epoch:06d}-r{rank:04d}").write_text(repr(time.time()))

    def entered(self, epoch: int) -> list[float]:
        """When the ranks of an epoch entered their first step, by rank."""
        return [float(path.read_text()) for path in sorted(self.folder.glob(f"entered-e{epoch:06d}-r*"))]

    def _mark(self, number: int, past: int) -> Path:
        return self.folder / f"{number:03d}-{past:04d}"
