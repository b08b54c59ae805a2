"""Writing to people and to machines: colour only on a terminal, JSON on request, errors as what, why, mend."""

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel

from schemas.errors import ConfigError, HeadraceError, InterruptedRunError
from schemas.frozen import thaw

_STYLES = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}


def paint(text: str, style: str, *, stream: TextIO | None = None) -> str:
    """Returns `text` in a style (`red`, `green`, `yellow`, `dim`, `bold`) where `stream` (default: stdout) is a terminal that wants colour."""
    stream = stream or sys.stdout
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def show(lines: Iterable[str] | str, *, stream: TextIO | None = None) -> None:
    """Prints lines."""
    print("\n".join([lines] if isinstance(lines, str) else lines), file=stream or sys.stdout, flush=True)


def show_json(value: BaseModel | Mapping[str, Any] | Iterable[Any]) -> None:
    """Prints one JSON document."""
    print(json_text(value), flush=True)


def json_text(value: BaseModel | Mapping[str, Any] | Iterable[Any]) -> str:
    """Returns the JSON document that `show_json` prints."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else thaw(value)
    return json.dumps(plain, indent=2, ensure_ascii=False, default=_plain)


def show_error(error: HeadraceError, *, as_json: bool) -> None:
    """Prints an expected error: to stderr for people, and to stdout as JSON where a machine asked for it."""
    what, *rest = error.render().splitlines()
    stopped = isinstance(error, InterruptedRunError)
    show([paint(f"{'stopped' if stopped else 'error'}: {what}", "yellow" if stopped else "red", stream=sys.stderr), *rest], stream=sys.stderr)
    if as_json:
        body: dict[str, Any] = {
            "class": type(error).__name__,
            "exit_code": int(error.exit_code),
            "what": error.what,
            "why": error.why,
            "mend": error.mend,
        }
        if isinstance(error, ConfigError):
            body["problems"] = [vars(problem) for problem in error.problems]
        show_json({"error": body})


def show_bug(error: BaseException) -> None:
    """Prints an unexpected error in three lines; the traceback goes to a file."""
    path = _write_traceback(error)
    first = next(iter(str(error).splitlines()), "")
    what = f"error: {type(error).__name__}: {first}" if first else f"error: {type(error).__name__}"
    show(
        [
            paint(what, "red", stream=sys.stderr),
            "  why:  this is a bug in Headrace, or in code that the recipe names",
            f"  mend: report it with {path}",
        ],
        stream=sys.stderr,
    )


def _write_traceback(error: BaseException) -> Path:
    folder = next((parent / ".headrace" / "crashes" for parent in (Path.cwd(), *Path.cwd().parents) if (parent / ".headrace").is_dir()), None)
    text = "".join(traceback.format_exception(error))
    name = f"{time.strftime('%Y%m%dt%H%M%S', time.gmtime())}-{os.getpid()}.txt"
    for target in (folder, Path(tempfile.gettempdir()) / "headrace-crashes"):
        if target is None:
            continue
        try:
            target.mkdir(parents=True, exist_ok=True)
            (target / name).write_text(f"{' '.join(sys.argv)}\n{text}", encoding="utf-8")
        except OSError:  # a read-only folder must not hide the error itself; the next place may do
            continue
        return target / name
    print(text, file=sys.stderr)
    return Path("the lines above")


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)
