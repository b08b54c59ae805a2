"""A process that has imported the training libraries and forks gangs of ranks on request, so that a test's gang starts in a second.

Requests, one JSON object a line on stdin: {"program", "spec", "world_size", "port", "log_dir"}; program is `package.module:function`
or `/path/file.py:function`, a function of one RankTask. Answers on stdout: {"pids": […]} after the fork, {"statuses": […]} at the end.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tasks.entry import RankTask, rank_main

_OTHERS_S = 120
"""How long ranks may go on after one that failed."""


def _load(program: str) -> Callable[[RankTask], None]:
    place, _, name = program.rpartition(":")
    if not place.endswith(".py"):
        function: Callable[[RankTask], None] = getattr(importlib.import_module(place), name)
        return function
    spec = importlib.util.spec_from_file_location("rank_program", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded: Callable[[RankTask], None] = getattr(module, name)
    return loaded


def _fork(request: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if not pid:
        _become(request, rank)
    return pid


def _become(request: dict[str, Any], rank: int) -> NoReturn:
    log = os.open(Path(request["log_dir"]) / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    size = str(request["world_size"])
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": size, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"])}
    sys.argv = ["rank", "--spec", request["spec"]]
    rank_main(_load(request["program"]))


def _ends(pids: list[int]) -> list[int]:
    """Returns how the ranks ended, by rank. Those that outlive a failed one for long are killed: before they meet they wait half an hour for it."""
    statuses: dict[int, int] = {}

    def kill_others(*_: object) -> None:
        for pid in set(pids) - set(statuses):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill_others)
    while len(statuses) < len(pids):
        pid, status = os.waitpid(-1, 0)
        statuses[pid] = os.waitstatus_to_exitcode(status)
        if status:
            signal.alarm(_OTHERS_S)
    signal.alarm(0)
    return [statuses[pid] for pid in pids]


def main() -> None:
    """Serves requests until stdin ends."""
    import tasks.train.preload  # noqa: F401  # imports the libraries

    assert threading.active_count() == 1, "a process that forks must not have threads"
    for line in sys.stdin:
        request = json.loads(line)
        pids = [_fork(request, rank) for rank in range(request["world_size"])]
        print(json.dumps({"pids": pids}), flush=True)
        print(json.dumps({"statuses": _ends(pids)}), flush=True)


if __name__ == "__main__":
    main()
