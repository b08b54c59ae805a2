"""Processes of tests that are over, and waited for, when the test is: one that is not would be found by a later test, as a warning."""

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def running(*argv: str, **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Runs a process beside the body, at most as long; `options` are those of `Popen`."""
    with subprocess.Popen(argv, **options) as process:
        try:
            yield process
        finally:
            process.kill()
