"""Writes the lock files from what is installed in the running environment: `make lock` after trying newer versions.

base.txt is the closure of `project.dependencies` without torch (whose build depends on the accelerator), dev.txt what the
`dev` group adds; control.txt and ranks.txt are the parts of base.txt that the two images of `infra/docker` install. Nothing is
resolved here: what was tested is what is locked.
"""

import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
NOT_LOCKED = {"torch", "headrace"}
SIDES = {"control": "Of base.txt, what decides: flows, workers, servers.", "ranks": "Of base.txt, what computes: agents and ranks."}


def closure(requirements: Iterable[str]) -> set[str]:
    """Returns the canonical names of all installed packages that `requirements` lead to."""
    todo = [(canonicalize_name(parsed.name), frozenset(parsed.extras)) for parsed in map(Requirement, requirements)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for text in metadata.requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                todo.append((canonicalize_name(wanted.name), frozenset(wanted.extras)))
    return {name for name, _ in seen}


def write(name: str, packages: set[str], *, title: str) -> None:
    """Writes one lock file, sorted."""
    pins = sorted(f"{package}=={metadata.version(package).partition('+')[0]}" for package in packages - NOT_LOCKED)
    (HERE / name).write_text(f"# {title} Made by `make lock`.\n" + "\n".join(pins) + "\n")


def main() -> None:
    """Writes all files."""
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())
    base = closure([*project["project"]["dependencies"], "setuptools"])
    for side, title in SIDES.items():
        without = {canonicalize_name(name) for name in project["tool"]["headrace"]["images"][f"{side}-without"]}
        kept = [text for text in project["project"]["dependencies"] if canonicalize_name(Requirement(text).name) not in without]
        write(f"{side}.txt", closure([*kept, "setuptools"]), title=title)
    dev = closure(project["dependency-groups"]["dev"]) - base
    write("base.txt", base, title="Every package that Headrace runs with, but torch: one tested set.")
    write("dev.txt", dev, title="What checks, tests and benchmarks need besides.")


if __name__ == "__main__":
    main()
