"""The program `headrace`: gives the answer "nothing to do" again while all that it rested on is as it was, and starts the command line otherwise.

When a pipeline is found finished, `flows.certifying` leaves a certificate: the answer, and every fact that it followed from. Here the facts are
compared, by the standard library alone: importing what could find the answer takes longer than everything that is done here. Nothing is decided:
any difference, any doubt, and any argument but the plainest lead to `flows.cli`, which finds out anew.
"""

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Sequence
from typing import Any

IMPORTED_NS = time.time_ns()
"""When this process imported the first module of ours."""
_PROJECT_MARKS = ("pyproject.toml", ".git", ".headrace")
"""As in `schemas.recipe`."""
_DEMO = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "infra", "recipes", "demo_cpu.yaml")
_ENVIRONMENT = ("HOME",)
_ENVIRONMENT_PREFIXES = ("PYTHON", "PYDANTIC")


def main() -> None:
    """Answers from a certificate, or runs the command line."""
    if not _answered(sys.argv[1:]):
        from flows.cli import main as run_command_line

        run_command_line()


def _answered(arguments: Sequence[str]) -> bool:
    """Whether the answer was known, and was printed. What cannot be printed fails again, and is told, on the long way."""
    certificate = standing_certificate(arguments)
    if certificate is None:
        return False
    try:
        for warning in certificate["warnings"] if arguments[0] == "run" else ():
            print(warning, file=sys.stderr, flush=True)
        print(certificate["json" if "--json" in arguments else "text"], flush=True)
    except (OSError, UnicodeError):
        return False
    return True


def standing_certificate(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Returns the certificate of the answer to these arguments, when there is one and all of it holds."""
    question = _question(arguments)
    if question is None:
        return None
    recipe, overrides = question
    try:
        certificate = _read(certificate_path(os.path.normpath(os.path.join(os.getcwd(), recipe)), overrides))
        return certificate if certificate is not None and _holds(certificate) else None
    except (OSError, ValueError, LookupError, TypeError):  # something is gone, or unreadable, or the certificate is another version's
        return None


def _question(arguments: Sequence[str]) -> tuple[str, list[str]] | None:
    """Returns recipe and overrides of the plainest ways to ask, `run RECIPE [--set KEY=VALUE]… [--json]` and `demo [--json]`; None for all others."""
    command, *words = arguments or ("",)
    if command == "demo" and all(word == "--json" for word in words):
        return _DEMO, []
    if command != "run":
        return None
    recipes: list[str] = []
    overrides: list[str] = []
    words.reverse()
    while words:
        word = words.pop()
        if word == "--set" and words and words[-1][:1] != "-":
            overrides.append(words.pop())
        elif word[:1] != "-":
            recipes.append(word)
        elif word != "--json":
            return None
    if len(recipes) != 1 or recipes[0][:1] in ("", "~"):
        return None
    return recipes[0], overrides


# ---- certificates, as they lie on disk -------------------------------------------------------------------------------


def certificate_path(recipe: str, overrides: Sequence[str]) -> str:
    """Returns where the certificate lies for the absolute path of a recipe, overridden here: relative paths in overrides start at this folder."""
    folders = [recipe]
    while (parent := os.path.dirname(folders[-1])) != folders[-1]:
        folders.append(parent)
    marked = (folder for folder in folders[1:] if any(os.path.exists(os.path.join(folder, mark)) for mark in _PROJECT_MARKS))
    project = next(marked, os.path.dirname(recipe))
    key = json.dumps([recipe, list(overrides), os.getcwd() if overrides else ""])
    return os.path.join(project, ".headrace", "certificates", f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json")


def packed(certificate: dict[str, Any]) -> bytes:
    """Returns a certificate as it is stored: a hash of the rest, then the rest."""
    body = json.dumps(certificate).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _read(path: str) -> dict[str, Any] | None:
    """Returns a stored certificate; None when its bytes are not those that were written. Raises OSError when there is none."""
    with open(path, "rb") as file:
        seal, _, body = file.read().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != seal:
        return None
    certificate: dict[str, Any] = json.loads(body)
    return certificate


# ---- facts: taken by `flows.certifying`, compared here ---------------------------------------------------------------


def _holds(certificate: dict[str, Any]) -> bool:
    """Whether every fact is as it was, cheap ones first. Raises OSError for one that cannot be looked at any more."""
    return (
        certificate["interpreter"] == interpreter()
        and certificate["environment"] == environment()
        and all(name in os.environ for name in certificate["variables"])
        and certificate["recipe"][1] == text_hash(certificate["recipe"][0])
        and all(files_below(folder) == files for folder, files in certificate["packages"].items())
        and all(names_in(folder, prefix) == names for folder, prefix, names in certificate["names"])
        and not any(os.path.lexists(path) for path in certificate["absent"])
        and all(os.path.realpath(path) == real for path, real in certificate["links"].items())
        and all(content_hash(path) == digest for path, digest in certificate["records"].items())
        and all(stamp(path) == known for path, known in certificate["stamps"].items())
    )


def interpreter() -> list[str]:
    """Returns what decides which code would answer, and whether it may read: Python, where it imports from, and the user."""
    return [
        sys.version,
        sys.executable,
        sys.prefix,
        sys.getfilesystemencoding(),
        repr(sys.flags),
        str(os.geteuid()),
        *(folder or os.getcwd() for folder in sys.path),
    ]


def environment() -> dict[str, str]:
    """Returns the variables that Python, and paths with `~`, go by."""
    return {name: value for name, value in os.environ.items() if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)}


def text_hash(path: str) -> str:
    """Returns the hash of a recipe's text as `schemas.recipe` takes it."""
    with open(path, encoding="utf-8-sig") as file:
        return hashlib.sha256(file.read().encode()).hexdigest()


def content_hash(path: str) -> str:
    """Returns the hash of a small regular file. Raises OSError when it is not one."""
    if not stat.S_ISREG(os.lstat(path).st_mode):  # a pipe would never end
        raise OSError(f"{path} is not a regular file")
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def names_in(folder: str, prefix: str) -> list[str]:
    """Returns the names in a folder that begin with `prefix`; none when there is no such folder."""
    try:
        return sorted(name for name in os.listdir(folder) if name.startswith(prefix))
    except FileNotFoundError:
        return []


def files_below(folder: str) -> list[str]:
    """Returns the paths of all files below a folder of code, compiled ones aside, which come and go."""
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += (os.path.join(place, name) for name in names)
    return sorted(found)


def stamp(path: str) -> list[int]:
    """Returns what changes with a file's content and with the names in a folder. Raises OSError."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
