"""What only the demo does: it kills one of its own ranks at two thirds of training, and ends with one screen that tells all."""

import json
import logging
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.layout import REPORT_NAME
from cluster.storage import Storage
from flows.figure import model_uri
from flows.screens import demo_screen
from schemas.config import RunConfig
from schemas.journal import RunHandle
from schemas.stage import Stage
from tasks.disturbance import kill_rank
from tasks.runs import Run, open_run
from tasks.views import view_of

logger = logging.getLogger(__name__)

_VICTIM = 1
_AT_SHARE = 2 / 3


def kill_is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the demo kills a rank: yes, unless `DEMO_KILL=0`."""
    return environment.get("DEMO_KILL", "1") not in ("0", "no", "false")


@contextmanager
def killing_a_rank(handle: RunHandle, config: RunConfig) -> Iterator[None]:
    """Sends SIGKILL to rank 1 once training has passed two thirds of its steps, while the body works."""
    run, steps, ended = open_run(handle), config.training.steps, threading.Event()
    if not kill_is_wanted(os.environ) or steps is None or config.ranks(Stage.TRAIN) <= _VICTIM:
        yield
        return
    at_step = round(steps * _AT_SHARE)

    def watch() -> None:
        try:
            kill_rank(run.storage, artifact_key=lambda: _training_key(run), rank=_VICTIM, at_step=at_step, epoch=0, cancelled=ended)
        except Exception:  # the thread's outermost edge: a demo without its kill is still a demo, and a trace is for the log
            logger.info("the demo kills no rank", exc_info=True)

    thread = threading.Thread(target=watch, name="demo-kill", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5.0)


def last_screen(handle: RunHandle) -> list[str]:
    """Returns the demo's last screen for a finished run."""
    run = open_run(handle)
    view = view_of(run)
    pointer = run.pointer(Stage.VALIDATE)
    pages = data_report(run.storage, pointer.key) if pointer else []
    commands = next_commands(model_uri(view.stages[-1].figures), state_dir=Path(handle.state_dir))
    return demo_screen(view, sample=_sample(run), commands=[*pages, *commands])


def data_report(storage: Storage, key: str) -> list[tuple[str, str]]:
    """Returns where the report of a corpus is, as (what it is, path); nothing where there is none to open on this machine."""
    path = storage.local_path(f"{key}/{REPORT_NAME}")
    return [("data", _near(path))] if path is not None and path.is_file() else []


def next_commands(model: str, *, state_dir: Path) -> list[tuple[str, str]]:
    """Returns what to do next as (what for, command), to be typed in the current folder."""
    tools, state = _near(Path(sys.executable).parent), _near(state_dir)
    headrace = "headrace" if shutil.which("headrace") else f"{tools}/headrace"
    return [
        ("verify", f"{headrace} verify {model}"),
        ("your text", f"{headrace} init my.yaml --text FOLDER"),
        ("curves", f"{tools}/mlflow ui --backend-store-uri sqlite:///{shlex.quote(f'{state}/mlflow.db')}"),
        ("flow run", f"PREFECT_HOME={shlex.quote(f'{state}/prefect')} {tools}/prefect server start"),
    ]


def _near(path: Path) -> str:
    """The path as short as the current folder allows."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _training_key(run: Run) -> str | None:
    pointer = run.pointer(Stage.TRAIN)
    return pointer.key if pointer else None


def _sample(run: Run) -> tuple[str, str] | None:
    """The first sample of the evaluation: prompt and continuation."""
    pointer = run.pointer(Stage.EVALUATE)
    if pointer is None:
        return None
    try:
        samples = json.loads(run.storage.read(f"{pointer.key}/samples.json"))["samples"]
    except FileNotFoundError:  # an evaluation without prompts leaves none
        return None
    return (str(samples[0]["prompt"]), str(samples[0]["completion"])) if samples else None
