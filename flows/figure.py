"""Numbers as people read them. Pure."""

import time
from collections.abc import Sequence


def of_bytes(count: float) -> str:
    """Returns `12.3 MB` (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def of_count(count: float) -> str:
    """Returns `999`, `2.2 M`, `26 B`."""
    for unit in ("", "k", "M", "B", "T"):
        if count < 999.5 or unit == "T":
            text = f"{count:.0f}" if not unit or count >= 99.95 else f"{count:.3g}"
            return f"{text} {unit}".strip()
        count /= 1000
    raise AssertionError


def of_seconds(seconds: float) -> str:
    """Returns `3.1 s`, `2 min 05 s`, `4 h 10 min`, `3 d 4 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def of_moment(at: float) -> str:
    """Returns `2026-11-22 02:15:07`, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def table(rows: Sequence[tuple[str, ...]], *, right: tuple[int, ...] = ()) -> list[str]:
    """Returns rows as aligned lines; the columns in `right` are set to the right."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) if column in right else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
