"""The environment variables between agent and compute, by name: the one module that knows them. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RANK = "RANK"
WORLD_SIZE = "WORLD_SIZE"
LOCAL_RANK = "LOCAL_RANK"
LOCAL_WORLD_SIZE = "LOCAL_WORLD_SIZE"
NODE_RANK = "NODE_RANK"
MASTER_ADDR = "MASTER_ADDR"
MASTER_PORT = "MASTER_PORT"
NUM_THREADS = "OMP_NUM_THREADS"
ATTEMPT_KEY = "HEADRACE_ATTEMPT"
EPOCH = "HEADRACE_EPOCH"
PROJECT_DIR = "HEADRACE_PROJECT_DIR"
"""The user's folder; `tasks.entry` makes it importable."""
PULSE = "HEADRACE_PULSE"
"""Where a rank gives signs of life: `path:offset` (`cluster.agent.pulse`)."""
BUFFER = "HEADRACE_BUFFER"
"""Memory that a rank takes over from the start before, as a path (`cluster.agent.buffers`)."""
STACKS_FILE = "HEADRACE_STACKS_FILE"
"""Where a rank writes its stacks when the agent asks for them (`cluster.agent.stacks`)."""
NODE_NAME = "HEADRACE_NODE_NAME"
"""What the cluster calls the machine, where its host name is another: in pods."""
MODULES_FILE = "HEADRACE_MODULES_FILE"
"""Where a first rank writes down the modules that it imported (`cluster.agent.preload.record_modules`)."""

ALLOWED: tuple[str, ...] = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "CC",
    "CXX",
    "MAX_JOBS",
    "TORCH_EXTENSIONS_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "DS_ACCELERATOR",
    "DS_SKIP_CUDA_CHECK",
    "MODULEPATH",
    "LOADEDMODULES",
)
"""What ranks inherit from the agent by name. Credentials of storage and services are none of it: compute talks to neither."""

ALLOWED_PREFIXES: tuple[str, ...] = (
    *("LC_", "MKL_", "KMP_", "SLURM_", "TORCH_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "ROCM_", "HIP_", "GLOO_", "UCX_", "FI_", "OMPI_"),
)
"""What ranks inherit from the agent by the beginning of the name, unless the rest of it says that it is a credential (`SLURM_JWT`)."""

_CREDENTIAL = re.compile(r"JWT|TOKEN|SECRET|PASSW|CREDENTIAL|_KEY$")

DEFAULTS: Mapping[str, str] = {
    "PYTHONSAFEPATH": "1",  # the working directory is the user's project: a folder named `tasks` in it must not shadow ours
    "PYTHONFAULTHANDLER": "1",  # a crash leaves its stack in the log
    "PYTHONUNBUFFERED": "1",  # a killed process leaves its last lines
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking CUDA whether it is there would poison every later fork
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "true",
    # glibc gives large freed blocks back to the kernel, and a training step that frees and takes the same tensors again pays for
    # every page: on a CPU a third of the step. Ranks keep what they had. Other allocators ignore these.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the same allocator: one that keeps memory is enough, and Arrow's own takes huge pages for little
    "OMP_WAIT_POLICY": "PASSIVE",  # idle threads that spin take the core from the rank beside them
}
"""What every compute process gets unless the job's own environment says otherwise."""


@dataclass(frozen=True)
class Place:
    """A rank's place in its gang."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    master_addr: str
    master_port: int

    def variables(self) -> dict[str, str]:
        """Returns the variables that tell a rank its place; the names are those of torch.distributed's `env://`."""
        return {
            RANK: str(self.rank),
            WORLD_SIZE: str(self.world_size),
            LOCAL_RANK: str(self.local_rank),
            LOCAL_WORLD_SIZE: str(self.local_world_size),
            NODE_RANK: str(self.node_rank),
            MASTER_ADDR: self.master_addr,
            MASTER_PORT: str(self.master_port),
        }


def checkout() -> Path:
    """Returns the folder that holds the `cluster` package: what a child process must find on its import path."""
    return Path(__file__).resolve().parent.parent


def compute_environment(inherited: Mapping[str, str], *, extra: Mapping[str, str], project_dir: str, threads: int, python: str) -> dict[str, str]:
    """Returns the environment of a node's compute processes.

    Args:
        inherited: the agent's environment; only the allow list of it passes.
        extra: the job's own variables; they win.
        project_dir: the user's folder, importable after everything else (`tasks.entry` appends it for `model.factory`). Never on
            PYTHONPATH, which comes before the standard library: a `random.py` or `sitecustomize.py` that lies there would be run.
        threads: compute threads of each process.
        python: the interpreter; programs beside it (ninja) are found first.
    """
    allowed = {name: value for name, value in inherited.items() if _passes(name)}
    path = [str(checkout()), *filter(None, inherited.get("PYTHONPATH", "").split(":"))]
    programs = [str(Path(python).parent), *filter(None, inherited.get("PATH", "").split(":"))]
    own = {
        PROJECT_DIR: project_dir,
        "PYTHONPATH": ":".join(dict.fromkeys(path)),
        "PATH": ":".join(dict.fromkeys(programs)),
        NUM_THREADS: str(threads),
    }
    return {**DEFAULTS, **allowed, **own, **extra}


def _passes(name: str) -> bool:
    return name in ALLOWED or (name.startswith(ALLOWED_PREFIXES) and not _CREDENTIAL.search(name))
