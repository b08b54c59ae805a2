"""Versions of libraries for records: those of this environment, and of what only ranks have, those of the lock files beside it.

The image that decides has no torch; the one that computes is made of the same lock files.
"""

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

_LOCKS = Path(__file__).resolve().parent.parent / "infra" / "requirements"
_FILES = ("base.txt", "cpu.txt")
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;+]+)", re.MULTILINE)
UNKNOWN = "unknown"
"""Of a library that is neither here nor locked."""


def library_version(name: str, *, locks: Path = _LOCKS) -> str:
    """Returns the version of a library as jobs have it: of the one that is installed here, else the locked one, else `UNKNOWN`."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _locked(locks).get(name, UNKNOWN)


def _locked(locks: Path) -> Mapping[str, str]:
    texts = [(locks / file).read_text(encoding="utf-8") for file in _FILES if (locks / file).exists()]
    return {match["name"]: match["version"] for text in texts for match in _PIN.finditer(text)}
