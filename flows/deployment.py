"""`headrace deploy`: missing work pools first, then Prefect's own `deploy` with the file that describes the deployments.

A pool may have a base job template beside the file. It is handed over each time: what somebody changed on the server is as in the file again.
Removing a deployment or a schedule from the file does not delete it on the server; Prefect leaves that to people.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flows.prefect_server import is_healthy
from schemas.errors import HeadraceError, InputError, UnreachableError

_CHECKOUT = Path(__file__).resolve().parent.parent
_FILE = _CHECKOUT / "infra" / "prefect.yaml"


def deploy_all(*, pool: str | None, file: Path = _FILE) -> dict[str, Any]:
    """Deploys every deployment of `file` (or those of one work pool) and returns the names of deployments and pools.

    Raises:
        InputError: no file, or no deployment for `pool`.
        UnreachableError: there is no Prefect server that stays: a deployment needs one.
        HeadraceError: Prefect refused.
    """
    chosen = _deployments(file, pool=pool)
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        raise UnreachableError(
            "PREFECT_API_URL is not set",
            why="a deployment needs a Prefect server that stays",
            mend="prefect server start; export PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
    if not is_healthy(url, timeout_s=10.0):
        raise UnreachableError(f"no Prefect server answers at {url}", why="PREFECT_API_URL names it", mend="start it, or correct PREFECT_API_URL")
    pools = {str(deployment["work_pool"]["name"]): deployment["work_pool"] for deployment in chosen}
    for name, pool_settings in sorted(pools.items()):
        _provide_pool(name, pool_settings, folder=file.parent)
    names = [str(deployment["name"]) for deployment in chosen]
    for name in names:
        _must(_prefect("--no-prompt", "deploy", "--prefect-file", str(file), "--name", name), what=f"deployment {name!r} was refused")
    return {"deployments": names, "pools": sorted(pools), "server": url}


def _provide_pool(name: str, settings: Mapping[str, Any], *, folder: Path) -> None:
    """Makes a work pool that is missing, and gives any its base job template, where it has one of its own: a YAML file in `folder`."""
    missing = _prefect("work-pool", "inspect", name).returncode != 0
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as rendered:
        template: tuple[str, ...] = ()
        if "base_job_template" in settings:
            json.dump(base_job_template(folder / str(settings["base_job_template"])), rendered)
            rendered.flush()
            template = ("--base-job-template", rendered.name)
        if missing:
            made = _prefect("work-pool", "create", name, "--type", str(settings.get("type", "process")), *template)
            _must(made, what=f"work pool {name!r} could not be created")
        elif template:
            _must(_prefect("work-pool", "update", name, *template), what=f"work pool {name!r} did not take its base job template")


def base_job_template(file: Path) -> dict[str, Any]:
    """Returns what a worker makes of a flow run, and the variables in it. Raises InputError: there is no such file, or it is no template."""
    try:
        template = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist", why="a work pool names it as its base_job_template", mend="correct infra/prefect.yaml") from error
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not YAML", why=str(error), mend="correct it") from error
    if not isinstance(template, dict) or template.keys() != {"job_configuration", "variables"}:
        raise InputError(f"{file} is no base job template", why="it has two keys: job_configuration and variables", mend="correct it")
    return template


def _deployments(file: Path, *, pool: str | None) -> list[dict[str, Any]]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist", mend="run `headrace deploy` from a checkout") from error
    all_of_them: list[dict[str, Any]] = content["deployments"]
    chosen = [deployment for deployment in all_of_them if pool in (None, deployment["work_pool"]["name"])]
    if not chosen:
        pools = ", ".join(sorted({str(deployment["work_pool"]["name"]) for deployment in all_of_them}))
        raise InputError(f"no deployment for work pool {pool!r}", why=f"{file.name} knows {pools}", mend=f"--pool {pools.split(', ')[0]}")
    return chosen


def _prefect(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PWD": str(_CHECKOUT)}  # the pull step of the file names it
    return subprocess.run((sys.executable, "-m", "prefect", *arguments), cwd=_CHECKOUT, env=environment, capture_output=True, text=True, check=False)


def _must(process: subprocess.CompletedProcess[str], *, what: str) -> None:
    if process.returncode:
        lines = (process.stderr or process.stdout).strip().splitlines()
        raise HeadraceError(
            what,
            why=lines[-1].strip() if lines else f"prefect ended with {process.returncode}",
            mend="prefect config view shows which server is asked",
        )
