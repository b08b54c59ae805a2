"""Texts that are changed on purpose only."""

import os
from pathlib import Path

_GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def assert_golden(name: str, text: str) -> None:
    """Compares with the golden file; `UPDATE_GOLDEN=1` writes it instead."""
    path = _GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
