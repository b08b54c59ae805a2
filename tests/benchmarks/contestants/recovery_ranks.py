"""Peers of `recovery`: ranks that do nothing but an all-reduce a step; rank 1 kills itself in its first life.

torchrun | ft_launcher --standalone --nproc-per-node=2 --max-restarts=1 recovery_ranks.py FOLDER
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

FOLDER, RANK, LIFE = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
KILL_AT, STEPS = 50, 100

dist.init_process_group("gloo")
for step in range(STEPS):
    if LIFE and not step:
        (FOLDER / f"entered-{RANK}.json").write_text(json.dumps(time.time()))
    if not LIFE and RANK == 1 and step == KILL_AT:
        (FOLDER / "killed.json").write_text(json.dumps(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))
    time.sleep(0.02)
if LIFE:
    dist.destroy_process_group()
