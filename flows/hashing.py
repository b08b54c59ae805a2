"""What people see while raw files are hashed for a plan: nothing when that is quick; a bar on a terminal, a line now and then elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from tasks.hashing import Hashing

_QUICK_S = 2.0
_LINE_EVERY_S = 10.0

Show = Callable[[Hashing], None]
"""Shows how far the hashing is."""


@contextlib.contextmanager
def hashing_shown(stream: TextIO | None = None) -> Iterator[Show]:
    """Yields what shows on `stream` (default: stderr) how far the hashing is. From a terminal it is gone afterwards."""
    stream = stream or sys.stderr
    with contextlib.ExitStack() as stack:
        show = _bar(stream, stack) if stream.isatty() else _lines(stream)
        yield lambda hashing: show(hashing) if hashing.seconds >= _QUICK_S else None


def _lines(stream: TextIO) -> Show:
    due_s = 0.0

    def show(hashing: Hashing) -> None:
        nonlocal due_s
        if hashing.seconds >= due_s:
            due_s = hashing.seconds + _LINE_EVERY_S
            print(hashing.line, file=stream, flush=True)

    return show


def _bar(stream: TextIO, stack: contextlib.ExitStack) -> Show:
    update: Show | None = None

    def show(hashing: Hashing) -> None:
        nonlocal update
        if hashing.done_bytes >= hashing.total_bytes:  # what follows may take a while, too
            stack.close()
            update = None
            return
        update = update or _new_bar(stream, stack)
        update(hashing)

    return show


def _new_bar(stream: TextIO, stack: contextlib.ExitStack) -> Show:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    console = Console(file=stream, highlight=False, markup=False, soft_wrap=True)
    columns = (SpinnerColumn(), BarColumn(bar_width=30), TextColumn("{task.description}"))
    progress = stack.enter_context(Progress(*columns, console=console, transient=True, refresh_per_second=4))
    bar = progress.add_task("", total=None)
    return lambda hashing: progress.update(bar, completed=hashing.done_bytes, total=hashing.total_bytes, description=hashing.line)
