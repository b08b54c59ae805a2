"""Both images, built as `make images` builds them, of Debian's packages and a folder of wheels; and their files, for nodes that run pods of them."""

import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.kubernetes_cluster import CACHE
from tests.fakes.tiny_pipeline import ROOT

DOCKER, REQUIREMENTS = ROOT / "infra/docker", ROOT / "infra/requirements"
SIDES = ("control", "ranks")


@dataclass(frozen=True)
class BuiltImage:
    """An image."""

    name: str
    """`localhost/headrace-ranks:0.1.0`."""
    root: Path
    """Its files."""
    about: Mapping[str, Any]
    """What buildah knows of it."""
    bill: str
    """Its bill of materials: a text."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its user, variables, labels, …"""
        config: Mapping[str, Any] = self.about["OCIv1"]["config"]
        return config

    @property
    def site_packages(self) -> Path:
        """Where its Python distributions are."""
        (found,) = self.root.glob("opt/venv/lib/python3.*/site-packages")
        return found

    def make_known(self, cluster: Any) -> None:
        """Has a test cluster's nodes know it."""
        env = dict(each.split("=", 1) for each in self.config["Env"])
        cluster.add_image(self.name, rootfs=str(self.root), env=env, workdir=self.config["WorkingDir"], user=self.config["User"])


@contextlib.contextmanager
def images_built(*, pip_conf: str) -> Iterator[dict[str, BuiltImage]]:
    """Side → image, for as long as the body runs.

    Args:
        pip_conf: pip's configuration for the build: a secret.
    """
    with tempfile.TemporaryDirectory(prefix="hr-images-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        (folder / "storage.conf").write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{_layers()}"\nrunroot = "{folder}/run"\n')
        (folder / "pip.conf").write_text(pip_conf)
        patch.setenv("CONTAINERS_STORAGE_CONF", str(folder / "storage.conf"))
        try:
            build(folder / "bills", "--wheels", str(wheels()), "--pip-conf", str(folder / "pip.conf"))
            yield {side: _unpacked(side, folder) for side in SIDES}
        finally:  # buildah mounts this folder over itself, and leaves it so; another build that is at work keeps it
            subprocess.run(("umount", str(_layers() / "overlay")), capture_output=True)


def build(folder: Path, *arguments: str) -> str:
    """Builds both images. Returns what it says."""
    argv = (sys.executable, str(DOCKER / "build.py"), "--folder", str(folder), *arguments)
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def wheels() -> Path:
    """Returns a folder of all packages of the lock files, which is made once."""
    locks = [REQUIREMENTS / name for name in ("base.txt", "cpu.txt")]
    folder = CACHE / f"wheels-{_digest(*locks)}-{sys.implementation.cache_tag}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=CACHE, prefix=".wheels-"))
        argv = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(unfinished), "--requirement", str(locks[-1]))
        done = subprocess.run(argv, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        unfinished.rename(folder)
    return folder


def _unpacked(side: str, folder: Path) -> BuiltImage:
    """Returns an image with its files in a plain folder: a mount would not be seen by nodes that were begun before."""
    bill = (folder / f"bills/headrace-{side}.cdx.json").read_text()
    name = str(json.loads(bill)["metadata"]["component"]["name"])
    container = _buildah("from", "--pull-never", name)
    root = folder / side
    subprocess.run(("cp", "--archive", _buildah("mount", container), str(root)), check=True)
    _buildah("rm", container)
    return BuiltImage(name=name, root=root, about=json.loads(_buildah("inspect", "--type", "image", name)), bill=bill)


def _layers() -> Path:
    """Returns where layers are kept, so that what no change concerns is not built again."""
    return CACHE / f"images-{_digest(DOCKER / 'finish.sh', *(REQUIREMENTS / f'{name}.txt' for name in (*SIDES, 'cpu')))}"


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _buildah(*argv: str) -> str:
    return subprocess.run(("buildah", *argv), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
