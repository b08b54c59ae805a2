"""Builds both images with buildah, and writes beside them what is in them. No daemon, no registry.

    make images [ARGUMENTS="--base registry.example.com/python@sha256:… --accel cuda"]

Without `--base`, one is made of Debian's packages, once: `buildah rmi localhost/headrace-base:bookworm` has it made anew.
As root, or within `buildah unshare`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bill_of_materials import bill_of_materials

_CHECKOUT = Path(__file__).resolve().parents[2]
_SIDES = ("control", "ranks")
_OWN_BASE = "localhost/headrace-base:bookworm"
# Without what only an administrator needs: no apt, no manuals. Licences stay. Wheels rely on C++'s library, which Python itself does without.
_DEBIAN = (
    "--variant=essential",
    "--include=ca-certificates,libstdc++6,python3,python3-venv,usr-is-merged",
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "info", "locale", "man")),
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
)


@dataclass(frozen=True)
class Built:
    """An image in the local storage."""

    name: str
    identity: str
    """Digest of its configuration, and so of all of it; the registry's digest is of the compressed layers."""
    bill: Path
    """CycloneDX, JSON."""


def main() -> int:
    """Builds. Returns an exit code: 2 where a program is missing, 1 where one of them failed and has said why."""
    options = _parser().parse_args()
    wanted = {"buildah": True, "mmdebstrap": options.base is None}
    if missing := [name for name, is_wanted in wanted.items() if is_wanted and shutil.which(name) is None]:
        print(f"not installed: {', '.join(missing)}; mend: apt-get install -y --no-install-recommends {' '.join(missing)}", file=sys.stderr)
        return 2
    if not any(map(shutil.which, ("crun", "runc"))):
        os.environ.setdefault("BUILDAH_ISOLATION", "chroot")
    try:
        base = options.base or _own_base()
        for side in _SIDES:
            built = _build(side, options, base=base)
            print(f"{built.name}\n  {built.identity}\n  {built.bill}", flush=True)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(error.cmd[:2])} ended with {error.returncode}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", help="Debian or Ubuntu with python3; pin it: NAME@sha256:…")
    parser.add_argument("--accel", choices=("cpu", "cuda", "site"), default="cpu", help="which torch ranks get; site: the one that BASE has")
    parser.add_argument("--wheels", type=Path, help="a folder of packages, and no index (`make wheelhouse`)")
    parser.add_argument("--pip-conf", type=Path, help="pip's configuration for the build: which index, with which password. It is in no layer")
    parser.add_argument("--prefix", default="localhost/headrace", help="of the names: PREFIX-control:VERSION, PREFIX-ranks:VERSION")
    parser.add_argument("--folder", type=Path, default=_CHECKOUT / ".headrace/images", help="where bills of materials go")
    return parser


def _build(side: str, options: argparse.Namespace, *, base: str) -> Built:
    version = tomllib.loads((_CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    name = f"{options.prefix}-{side}:{version}"
    values = {"BASE": base, "VERSION": version, "REVISION": _revision(), **({"ACCEL": options.accel} if side == "ranks" else {})}
    more: list[str] = []
    if options.wheels is not None:
        values["PIP_NO_INDEX"] = "1"
        more += ["--build-context", f"wheels={options.wheels.resolve()}"]
    if options.pip_conf is not None:
        more += ["--secret", f"id=pip,src={options.pip_conf.resolve()}"]
    more += [word for key, value in values.items() for word in ("--build-arg", f"{key}={value}")]
    recipe = _CHECKOUT / "infra/docker" / f"{side}.Containerfile"
    argv = ("buildah", "build", "--layers", "--file", str(recipe), "--tag", name, *more, str(_CHECKOUT))
    subprocess.run(argv, check=True, stdout=sys.stderr)
    return _described(name, folder=options.folder)


def _described(name: str, *, folder: Path) -> Built:
    """Writes what is in an image."""
    about: dict[str, Any] = json.loads(_run("buildah", "inspect", "--type", "image", name))
    identity, labels = f"sha256:{about['FromImageID']}", about["OCIv1"]["config"]["Labels"]
    container = _run("buildah", "from", "--pull-never", name)
    try:
        text = bill_of_materials(Path(_run("buildah", "mount", container)), name=name, identity=identity, labels=labels)
    finally:
        _run("buildah", "rm", container)
    folder.mkdir(parents=True, exist_ok=True)
    bill = folder / f"{labels['org.opencontainers.image.title']}.cdx.json"
    bill.write_text(text)
    return Built(name=name, identity=identity, bill=bill)


def _own_base() -> str:
    """Returns the name of a base made of Debian's packages, which is made if it is not there."""
    if not _run("buildah", "images", "--quiet", "--filter", f"reference={_OWN_BASE}"):
        with tempfile.TemporaryDirectory(prefix="headrace-base-") as folder:
            archive = f"{folder}/base.tar"
            _run("mmdebstrap", "--quiet", *_DEBIAN, "bookworm", archive)
            container = _run("buildah", "from", "scratch")
            _run("buildah", "add", "--quiet", container, archive, "/")
            _run("buildah", "commit", "--quiet", "--rm", container, _OWN_BASE)
    return _OWN_BASE


def _revision() -> str:
    """Returns the commit of the sources, with `-dirty` where they differ from it."""
    done = subprocess.run(
        ("git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"), capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def _run(*argv: str) -> str:
    """Runs a program whose log is the user's to see. Returns what it answers. Raises CalledProcessError."""
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
