"""The cluster's processes are known from the moment that they are started."""

from pathlib import Path

from lab.processes import Processes

_HOW_MANY = 60


def test_a_process_that_has_only_just_been_started_lives(tmp_path: Path) -> None:
    """Within `exec` it has no environment for a moment: without waiting for it, one in seven was taken for dead."""
    processes = Processes(tmp_path)
    try:
        for index in range(_HOW_MANY):
            processes.spawn(f"sleeper{index}", "sleep", "60")
            assert processes.pid(f"sleeper{index}") is not None
    finally:
        processes.kill_rest()
