"""What each image installs suffices for what runs in it, and nothing of the other side is in it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.tiny_pipeline import ROOT

DOCKER, REQUIREMENTS = ROOT / "infra/docker", ROOT / "infra/requirements"
SIDES = ("control", "ranks")

_ONLY = """
import importlib.abc, importlib.metadata, re, sys
allowed = {re.sub("[-_.]+", "-", line.partition("==")[0]).lower() for line in open(sys.argv[1]) if "==" in line}
allowed |= {"headrace", *sys.argv[2].split()}
owners = importlib.metadata.packages_distributions()
shut = {top for top, dists in owners.items() if not any(re.sub("[-_.]+", "-", each).lower() in allowed for each in dists)}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in shut:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
found = importlib.metadata.Distribution.from_name
def from_name(name):
    if re.sub("[-_.]+", "-", name).lower() not in allowed:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.distribution = importlib.metadata.Distribution.from_name = from_name
"""
"""Hides from a process what a lock file does not have: its modules, and that it is installed."""


def alone(side: str, script: str, *, also: str = "", env: dict[str, str] | None = None) -> str:
    """Runs a script as in an image; returns what it prints."""
    argv = (sys.executable, "-c", _ONLY + script, str(REQUIREMENTS / f"{side}.txt"), also)
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def locked(name: str) -> set[str]:
    return {line for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines() if "==" in line}


@pytest.mark.slow
def test_what_computes_needs_no_more_than_the_ranks_image_has() -> None:
    jobs = sorted(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (ROOT / "tasks").glob("*/job.py"))
    assert "tasks.train.job" in jobs
    alone("ranks", "\n".join(f"import {name}" for name in ["cluster.agent.agent", "tasks.entry", "tasks.evaluate.plot", *jobs]), also="torch")


@pytest.mark.slow
def test_what_decides_needs_no_more_than_the_control_image_has(tmp_path: Path) -> None:
    modules = sorted(
        ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in [*(ROOT / "flows").glob("*.py"), *(ROOT / "tasks").glob("*/build.py")]
    )
    script = [f"import {name}" for name in modules if name != "flows.__init__"]
    plan = ["plan", "infra/recipes/demo_cpu.yaml", "--set", f"storage.root={tmp_path}"]
    script += ["import mlflow.server, prefect_kubernetes.worker, boto3", f"sys.argv[1:] = {plan!r}", "flows.cli.app()"]
    assert "training tokens" in alone("control", "\n".join(script))


def test_records_name_the_versions_of_what_only_ranks_have() -> None:
    script = "from tasks.library_versions import library_version as version\nprint(version('torch'), version('deepspeed'), version('no-such-thing'))"
    torch = next(line for line in (REQUIREMENTS / "cpu.txt").read_text().splitlines() if line.startswith("torch==")).removeprefix("torch==")
    assert alone("control", script).split()[0] == torch
    assert alone("control", script).split()[2] == "unknown"


def test_a_control_image_is_whole_for_doctor() -> None:
    script = "import os; os.environ['HEADRACE_LOCK'] = 'control.txt'\nfrom flows.checkup import check_packages\nprint(*check_packages())"
    assert "as locked in control.txt" in alone("control", script)
    script = "from flows.checkup import check_packages\nprint(*check_packages())"
    assert "torch is not installed" in alone("control", script)


@pytest.mark.parametrize("side", SIDES)
def test_a_side_installs_a_part_of_what_was_tested_together(side: str) -> None:
    assert locked(side) < locked("base")


def test_neither_side_has_what_the_other_is_for() -> None:
    names = {side: {line.partition("==")[0] for line in locked(side)} for side in SIDES}
    assert names["ranks"] & {"prefect", "mlflow", "great-expectations", "kubernetes", "sqlalchemy", "fastapi"} == set()
    assert names["control"] & {"torch", "deepspeed"} == set()
    assert {"prefect-kubernetes", "mlflow", "boto3", "asyncpg", "psycopg"} <= names["control"]


@pytest.mark.parametrize("side", SIDES)
def test_an_image_runs_as_nobody_special_and_says_what_it_is(side: str) -> None:
    text = (DOCKER / f"{side}.Containerfile").read_text()
    final = text[text.rindex("\nFROM ") :]
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["scratch", "${BASE}", "${BASE}"]
    assert "ARG BASE\n" in text, "nobody's image is taken when none is named"
    assert "\nUSER 10000:10000\n" in final
    assert not re.search(r"^(ADD|EXPOSE|VOLUME)", text, re.MULTILINE)
    assert {"title", "version", "revision", "licenses"} <= set(re.findall(r"org\.opencontainers\.image\.(\w+)=", final))
    assert re.findall(r"^COPY (?!--from=build)", final, re.MULTILINE) == []
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for word in line.split()]
    assert all((ROOT / word).exists() for word in copied)


def test_what_is_no_source_stays_outside() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert all((ROOT / line[1:]).exists() for line in lines if line.startswith("!"))
    assert not {"!tests", "!.git", "!.venv", "!docs"} & set(lines)


def test_without_the_programs_it_says_what_to_install(tmp_path: Path) -> None:
    done = subprocess.run((sys.executable, str(DOCKER / "build.py")), env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "apt-get install -y --no-install-recommends buildah mmdebstrap" in done.stderr
