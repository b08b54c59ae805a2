"""A finished project whose answer "nothing to do" is remembered, and ways to ask for it and to change what it rested on.

Here files are never too young to be believed, as they are in the first two seconds.
"""

import contextlib
import os
import sys
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from flows import certifying, finished
from tests.fakes.finished_store import finish_store
from tests.fakes.tiny_pipeline import Answer, Project, make_project

RUN = ("run", "tiny.yaml")
SEVERAL_TICKS_S = 0.03
"""More than a file system's clock needs to go on."""
MODULE = "of_this_test"
"""Stands for a package of ours that can be edited."""


def make_finished_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Returns a finished project, in a process that begins now, for which no file is too young."""
    monkeypatch.setattr(certifying, "_process_started_ns", time.time_ns)
    monkeypatch.setattr(certifying, "_YOUNG_NS", 0)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nothing here is to survive a power cut
    monkeypatch.setattr(certifying, "_PACKAGES", (*certifying._PACKAGES, MODULE))
    module = types.ModuleType(MODULE)
    module.__file__ = str(tmp_path / "code" / "__init__.py")
    (tmp_path / "code").mkdir()
    Path(module.__file__).write_text("VERSION = 1\n")
    monkeypatch.setitem(sys.modules, MODULE, module)
    project = make_project(tmp_path / "project")
    finish_store(project)
    return project


@contextlib.contextmanager
def inside(project: Project) -> Iterator[None]:
    with contextlib.chdir(project.folder), mock.patch.dict(os.environ, project.environment()):
        yield


def ask(project: Project, *arguments: str) -> Answer:
    """The answer as the long way finds it, which leaves its certificate."""
    time.sleep(SEVERAL_TICKS_S)
    answer = project.here(*(arguments or RUN))
    time.sleep(SEVERAL_TICKS_S)
    return answer


def remembered(project: Project, *arguments: str) -> dict[str, Any] | None:
    return remembered_of(project, arguments or RUN)


def remembered_of(project: Project, arguments: Sequence[str]) -> dict[str, Any] | None:
    """The certificate that the short way would answer from."""
    with inside(project):
        return finished.standing_certificate(arguments)


def rewritten(path: Path, data: bytes) -> None:
    """Writes other bytes and sets the time back: only the inode's own change time tells."""
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flipped(path: Path) -> None:
    """Changes one bit, leaving size and time as they were."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    rewritten(path, bytes(data))


def texts(project: Project) -> list[Path]:
    return sorted((project.folder / "text").iterdir())


def record(project: Project, stage: str = "train") -> Path:
    return project.artifact(stage) / "record.json"


def asked_with(project: Project, *overrides: str) -> tuple[str, ...]:
    """Finishes the recipe with these overrides, asks for it, and returns what was asked."""
    finish_store(project, overrides)
    asked = (*RUN, *(word for override in overrides for word in ("--set", override)))
    answer = ask(project, *asked)
    assert (answer.code, answer.out[:13]) == (0, "nothing to do"), answer
    assert remembered(project, *asked) is not None
    return asked


def begun_rebuild(project: Project) -> None:
    """Leaves another rebuild of the training without a record."""
    folder = project.artifact("train")
    folder.with_name(f"{folder.name}.r1").mkdir()
