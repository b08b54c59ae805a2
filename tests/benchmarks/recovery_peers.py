"""The peers of `recovery`, bare: no engine, no model to speak of, no state. One rank of two kills itself; each is started as its documentation says.

- torchrun at its defaults.
- nvidia-resiliency-ext's `ft_launcher` at its defaults, but for its watch over network cards, which there are none of. Its in-process restarts need
  all processes to survive, which a killed one does not.
- torchft: two replica groups of one rank, each under a torchrun, and a lighthouse with the options of torchft's README. The dead group is waited for
  until its heartbeat has been missing for 5 s.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from tests.benchmarks.harness import ROOT, peer_python

TRIAL_S = 60.0
"""A trial in which not all ranks are in a step again by then has failed."""
REQUIREMENTS = ("torchft==0.2.0", "nvidia-resiliency-ext==0.4.1")
_CONTESTANTS = Path(__file__).with_name("contestants")
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--max-restarts=1")
_RANKS = 2


def recover_torchrun(folder: Path) -> float | None:
    """Returns the seconds from the kill until the last rank is in a step again; None: it never was."""
    python = peer_python("recovery", *REQUIREMENTS, on_ours=True)
    return _trial(folder, [((str(python), *_TORCHRUN, f"--nproc-per-node={_RANKS}", str(_CONTESTANTS / "recovery_ranks.py"), str(folder)), {})])


def recover_nvrx(folder: Path) -> float | None:
    """As `recover_torchrun`."""
    launcher = peer_python("recovery", *REQUIREMENTS, on_ours=True).with_name("ft_launcher")
    options = ("--standalone", "--max-restarts=1", "--ignore-missing-fault-tol-cfg", "--ft-param-enable-nic-monitor", "False")
    command = (str(launcher), *options, f"--nproc-per-node={_RANKS}", str(_CONTESTANTS / "recovery_ranks.py"), str(folder))
    return _trial(folder, [(command, {})])


def recover_torchft(folder: Path) -> float | None:
    """As `recover_torchrun`; counted to the beginning of the first step that both groups commit."""
    python = peer_python("recovery", *REQUIREMENTS, on_ours=True)
    address = f"127.0.0.1:{_free_port()}"
    options = ("--min_replicas", "1", "--quorum_tick_ms", "100", "--join_timeout_ms", "10000", "--bind", address)
    command = (str(python), *_TORCHRUN, "--nproc-per-node=1", str(_CONTESTANTS / "recovery_torchft.py"), str(folder))
    groups = [(command, {"REPLICA_GROUP_ID": str(group), "TORCHFT_LIGHTHOUSE": f"http://{address}"}) for group in range(_RANKS)]
    with _running((str(python.with_name("torchft_lighthouse")), *options), {}):
        return _trial(folder, groups)


def _trial(folder: Path, programs: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> float | None:
    """Runs the programs until all ranks have told that they are in a step again, then ends them."""
    folder.mkdir()
    entered = [folder / f"entered-{rank}.json" for rank in range(_RANKS)]
    with ExitStack() as stack:
        processes = [stack.enter_context(_running(command, env)) for command, env in programs]
        deadline = time.monotonic() + TRIAL_S
        while time.monotonic() < deadline and not all(path.exists() for path in entered) and any(process.poll() is None for process in processes):
            time.sleep(0.1)
        time.sleep(0.2)  # what is there by then has been written whole
    if not all(path.exists() for path in entered):
        return None
    return max(float(json.loads(path.read_text())) for path in entered) - float(json.loads((folder / "killed.json").read_text()))


@contextlib.contextmanager
def _running(command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program, and ends it and all that it started."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT), **env}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            for one in _tree(process.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


def _tree(pid: int) -> list[psutil.Process]:
    """Returns a process and all below it, which may be in sessions of their own; nothing when it has ended."""
    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
