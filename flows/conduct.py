"""From a plan to the running pipeline: the environment, the Prefect server, the flow.

Prefect is imported here, inside `conduct`, once the environment says which server it talks to; never at the top.
"""

import logging
import os
from collections.abc import MutableMapping
from pathlib import Path

from flows.prefect_server import client_environment, ensure_server, is_healthy, prefect_home, wait_until_ready
from schemas.errors import UnreachableError
from schemas.journal import RunFile, RunHandle
from schemas.recipe import LoadedRecipe
from schemas.stage import Stage
from tasks.runs import create_run

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "GIT_PYTHON_REFRESH": "quiet",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
"""No library phones home, and none writes between our lines."""

_AMBIENT_PREFIXES = ("PREFECT_", "MLFLOW_", "AWS_", "KUBERNETES_")
_AMBIENT_NAMES = ("KUBECONFIG",)
_CACHES = {
    "HF_HOME": "huggingface",
    "TORCH_EXTENSIONS_DIR": "torch-extensions",
    "TORCHINDUCTOR_CACHE_DIR": "torch-inductor",
    "TRITON_CACHE_DIR": "triton",
    "MPLCONFIGDIR": "matplotlib",
    "XDG_CACHE_HOME": "cache",
}
"""Where libraries keep things, below the state folder."""


def begin(loaded: LoadedRecipe, *, from_stage: Stage | None) -> RunHandle:
    """Creates the run and returns its handle."""
    config = loaded.config
    return create_run(config, project_dir=loaded.project_dir, recipe=str(loaded.path), overrides=loaded.overrides, from_stage=from_stage)


def handle_of(file: RunFile, *, storage_root: str) -> RunHandle:
    """Returns the handle of a run that exists."""
    return RunHandle(run_id=file.run_id, storage_root=storage_root, state_dir=file.state_dir)


def isolate(environment: MutableMapping[str, str], *, state_dir: Path) -> None:
    """Cuts this process off from the user's Prefect, MLflow, AWS and Kubernetes, and keeps libraries' caches below `state_dir`.

    The demo must neither touch those nor write anywhere else.
    """
    for name in list(environment):
        if name.startswith(_AMBIENT_PREFIXES) or name in _AMBIENT_NAMES:
            del environment[name]
    environment.update({name: str(state_dir / folder) for name, folder in _CACHES.items()})


def conduct(handle: RunHandle, *, recipe: str, overrides: tuple[str, ...], ambient: bool = True) -> None:
    """Runs the pipeline for the run `handle`, to its end.

    Args:
        ambient: whether the user's own `PREFECT_API_URL` counts.

    Raises:
        HeadraceError: a stage failed, or the run was asked to stop.
        UnreachableError: no Prefect server.
    """
    state_dir = Path(handle.state_dir)
    given = prepare_environment(state_dir, ambient=ambient)
    url = given or ensure_server(state_dir, wait=False)
    os.environ["PREFECT_API_URL"] = url
    _log_to_file(state_dir)
    from flows.pretrain import pretrain  # meanwhile the server starts

    if given is None:
        wait_until_ready(state_dir, url)
    elif not is_healthy(url, timeout_s=10.0):
        raise UnreachableError(
            f"no Prefect server answers at {url}",
            why="PREFECT_API_URL names it",
            mend="start it, or unset PREFECT_API_URL: Headrace then starts its own",
        )
    pretrain(recipe=recipe, overrides=overrides, run_id=handle.run_id, storage_root=handle.storage_root)


def prepare_environment(state_dir: Path, *, ambient: bool) -> str | None:
    """Prepares this process for Prefect and quiet libraries; returns the user's own Prefect URL when it counts."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    prefect_home(state_dir).mkdir(parents=True, exist_ok=True)
    return client_environment(os.environ, state_dir=state_dir, ambient=ambient)


def _log_to_file(state_dir: Path) -> None:
    """Sends what libraries log and warn in this process to `{state}/control.log`."""
    logging.captureWarnings(True)
    handler = logging.FileHandler(state_dir / "control.log", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
