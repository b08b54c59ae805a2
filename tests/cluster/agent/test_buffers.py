"""A rank finds the memory of the rank before it, and of no other."""

import subprocess
import sys
from pathlib import Path

from cluster.agent.buffers import RankBuffers
from cluster.environment import BUFFER

WRITE = "import os, sys; file = os.open(os.environ['{name}'], os.O_RDWR); os.ftruncate(file, 8); os.pwrite(file, sys.argv[1].encode(), 0)"
READ = "import os; print(os.pread(os.open(os.environ['{name}'], os.O_RDWR), 8, 0))"


def run(program: str, buffers: RankBuffers, rank: int, *arguments: str) -> str:
    argv = (sys.executable, "-c", program.format(name=BUFFER), *arguments)
    return subprocess.run(argv, env=buffers.variables(rank), check=True, capture_output=True, text=True, cwd=Path("/")).stdout


def test_what_one_start_left_the_next_finds() -> None:
    buffers = RankBuffers()
    run(WRITE, buffers, 0, "rank 0")
    run(WRITE, buffers, 1, "rank 1")
    assert run(READ, buffers, 0) == "b'rank 0\\x00\\x00'\n"
    assert run(READ, buffers, 1) == "b'rank 1\\x00\\x00'\n"
