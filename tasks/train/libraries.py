"""torch, DeepSpeed and transformers, imported quietly and without side effects. Importing this module imports none of them."""

import contextlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

_NEVER_COMPILED = "deepspeed_shm_comm"
"""Only inference_all_reduce uses this op; it needs ninja and a compiler, and leaves 69 MB in /dev/shm per dead rank (DeepSpeed 0.19)."""


def import_libraries() -> None:
    """Imports the libraries. Computes nothing and starts no thread, so a process may fork afterwards."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asks the driver without making a context, which would not survive a fork
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _without("mlflow"):  # DeepSpeed's autotuner would import it: 2 s, 190 MB and threads that a fork does not survive
            import deepspeed
            import deepspeed.ops
        import transformers

        _import_muon_uncompiled()
    deepspeed.ops.__compatible_ops__[_NEVER_COMPILED] = False
    deepspeed.utils.logger.setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def prepare_libraries(*, num_threads: int, deterministic: bool = False) -> None:
    """Imports the libraries and sets up this process for computing. Not for a process that will fork.

    Args:
        num_threads: compute threads.
        deterministic: only deterministic kernels (GPU); what has none then raises. CPU kernels are deterministic as they are.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it before it is first used
    import_libraries()
    import torch

    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(deterministic)
    # torch and DeepSpeed warn about each other's names; what a person must know comes as an error or a log line of ours
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|deepspeed)\.")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|deepspeed)\.")


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """Makes imports of a module that is not loaded yet fail, as if it were not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # the documented way to block an import
    try:
        yield
    finally:
        del sys.modules[name]


def _import_muon_uncompiled() -> None:
    """Imports DeepSpeed's Muon with its `torch.compile` decorators off.

    ZeRO looks at Muon when it checks any optimizer, and with the decorators that loads torch's compiler: 5 s per process (DeepSpeed 0.19.8).
    """
    from deepspeed.runtime import compiler

    genuine = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = genuine
