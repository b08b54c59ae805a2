"""Which modules a zygote imports before it forks: a first rank writes down what it imported, later ranks find it imported.

Lazy imports are most of what the first `deepspeed.initialize` of a process costs; forked from a parent that has them, it costs next to nothing.
"""

import importlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.environment import LOCAL_RANK, MODULES_FILE
from cluster.storage import replace_local

logger = logging.getLogger(__name__)

_NEVER = ("__main__", "__mp_main__", "cluster.agent.zygote", "cluster.agent.standby", "antigravity", "this")


def record_modules() -> None:
    """Writes down what this rank has imported, in order, when the agent asked for it (local rank 0 only). About 1 ms; call it when a phase begins."""
    file = os.environ.get(MODULES_FILE)
    if file is None or os.environ.get(LOCAL_RANK, "0") != "0":
        return
    names = [name for name, module in list(sys.modules.items()) if name not in _NEVER and getattr(module, "__spec__", None) is not None]
    replace_local(Path(file), json.dumps(names).encode())


def recorded_modules(file: Path) -> tuple[str, ...]:
    """Returns the names in a file that `record_modules` wrote; empty when there is none."""
    try:
        return tuple(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return ()


def load_ahead(loader: str, spec: Path) -> None:
    """Calls `module:function` with the file of a task spec: what it leaves in memory, forked programs find there.

    What it raises is logged and passed over: the programs load by themselves then, and report what is wrong as their own error.
    """
    module, _, function = loader.partition(":")
    try:
        getattr(importlib.import_module(module), function)(spec)
    except Exception as error:  # noqa: BLE001  # as above: loading ahead must not end the zygote
        logger.info("not loaded ahead of the programs: %s (%s: %s)", loader, type(error).__name__, error)


def import_modules(names: tuple[str, ...]) -> Iterator[str]:
    """Imports the modules that are not imported yet, one per step of the iterator, and yields their names.

    A module that cannot be imported here (generated at run time, or importable only inside a rank) is logged and passed over:
    the ranks import it themselves, as they would without a zygote.
    """
    for name in names:
        if name in sys.modules or name in _NEVER:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  # any code may run at import; warming up must not end the zygote
            logger.info("not imported ahead of the ranks: %s (%s: %s)", name, type(error).__name__, error)
        yield name
