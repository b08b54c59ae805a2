"""A flow that does next to nothing: it writes down that it lives, and sleeps."""

import os
import time
from pathlib import Path

from prefect import flow


@flow(name="sleeping")
def sleeping(folder: str, sleep_s: float = 0.0) -> None:
    """Adds a line to `folder`/lives: its process, and the job that it knows of."""
    with Path(folder, "lives").open("a") as lives:
        lives.write(f"{os.getpid()} {os.environ.get('SLURM_JOB_ID', '-')}\n")
    time.sleep(sleep_s)
