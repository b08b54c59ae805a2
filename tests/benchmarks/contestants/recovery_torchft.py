"""A peer of `recovery`: a replica group of torchft, one rank, a model of one layer; group 1 kills itself in its first life.

TORCHFT_LIGHTHOUSE=http://… REPLICA_GROUP_ID=N torchrun --standalone --nproc-per-node=1 --max-restarts=1 recovery_torchft.py FOLDER
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo

FOLDER, GROUP, LIFE = Path(sys.argv[1]), int(os.environ["REPLICA_GROUP_ID"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
KILL_AT, STEPS = 50, 100
KILLED = FOLDER / "killed.json"

layer = torch.nn.Linear(8, 8)
plain = torch.optim.AdamW(layer.parameters())


def state() -> dict[str, object]:
    return {"layer": layer.state_dict(), "optimizer": plain.state_dict()}


def load(loaded: dict[str, dict[str, object]]) -> None:
    layer.load_state_dict(loaded["layer"])
    plain.load_state_dict(loaded["optimizer"])


manager = Manager(
    pg=ProcessGroupGloo(timeout=timedelta(seconds=5)),
    min_replica_size=1,
    load_state_dict=load,
    state_dict=state,
    replica_id=f"group_{GROUP}",
    timeout=timedelta(seconds=30),
    hostname="localhost",
)
model, optimizer = DistributedDataParallel(manager, layer), Optimizer(manager, plain)
while manager.current_step() < STEPS or manager.num_participants() < 2:
    began, killed = time.time(), KILLED.exists()
    optimizer.zero_grad()
    if GROUP == 1 and not LIFE and manager.current_step() >= KILL_AT:
        KILLED.write_text(json.dumps(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    model(torch.ones(4, 8)).sum().backward()
    optimizer.step()
    if killed and manager.num_participants() == 2 and not (entered := FOLDER / f"entered-{GROUP}.json").exists():
        entered.write_text(json.dumps(began))
    time.sleep(0.02)
