"""Other users of this machine, as root may become them: real uids, one group, their own umask and home."""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GROUP = 61_000
"""The group that shares the store."""
_PACKAGES = sysconfig.get_paths()["purelib"]


@dataclass(frozen=True)
class OtherUser:
    """A user without a name, as in containers: what tells of them is the number."""

    uid: int
    umask: int
    home: Path
    """A folder of theirs that nobody else may enter."""
    python: Path
    """Their interpreter, with our packages."""

    def argv(self, program: Sequence[str]) -> list[str]:
        """The command line that runs a Python program as this user."""
        return _becoming(self.uid, umask=self.umask, argv=(str(self.python), "-P", *program))

    def environment(self) -> dict[str, str]:
        """Of a fresh login; USER is another's on purpose, as `su` leaves it."""
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "OMP_WAIT_POLICY", "HF_HUB_OFFLINE", "DS_ACCELERATOR")}
        return {**kept, "HOME": str(self.home), "TMPDIR": str(self.home), "USER": "root", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}

    def start(self, *program: str) -> "subprocess.Popen[str]":
        """Starts a Python program as this user; it can be talked to."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.argv(program), cwd=self.home, env=self.environment(), stdin=pipe, stdout=pipe, text=True)

    def run(self, *program: str, timeout_s: float = 240.0) -> "subprocess.CompletedProcess[str]":
        """Runs a Python program as this user."""
        return subprocess.run(self.argv(program), cwd=self.home, env=self.environment(), capture_output=True, text=True, timeout=timeout_s)

    def headrace(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs `headrace` as this user."""
        return self.run("-c", "from flows.cli import main; main()", *arguments)


def other_user(uid: int, *, umask: int, home: Path, python: Path) -> OtherUser:
    """Returns a user, with a home of their own."""
    home.mkdir(mode=0o700)
    os.chown(home, uid, GROUP)
    return OtherUser(uid, umask=umask, home=home, python=python)


def environment_for_others(folder: Path) -> Path:
    """Makes an environment with our packages that any user may enter, and returns its interpreter."""
    base = python_for_others()
    assert base is not None
    subprocess.run((base, "-m", "venv", "--without-pip", str(folder)), check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{_PACKAGES}\n")
    return folder / "bin" / "python"


@functools.cache
def python_for_others() -> str | None:
    """Returns an interpreter with our packages that any user may run; None where there is none: the tests' own may lie in root's home."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, shutil.which(version, path="/usr/local/bin:/usr/bin"), shutil.which("python3", path="/usr/bin")):
        if python is None or shutil.which("setpriv") is None:
            continue
        program = f"import sys, pydantic, schemas.config; assert sys.version_info[:2] == {sys.version_info[:2]!r}"
        argv = _becoming(GROUP + 9, umask=0o022, argv=(python, "-P", "-c", program))
        done = subprocess.run(argv, cwd="/", env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{_PACKAGES}"}, capture_output=True, check=False)
        if done.returncode == 0:
            return python
    return None


def _becoming(uid: int, *, umask: int, argv: Sequence[str]) -> list[str]:
    become = ("setpriv", "--reuid", str(uid), "--regid", str(GROUP), "--clear-groups")
    return [*become, "sh", "-c", f'umask {umask:03o}; exec "$0" "$@"', *argv]
