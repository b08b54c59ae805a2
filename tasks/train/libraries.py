"""torch, DeepSpeed and transformers, imported quietly and without side effects. Importing this module imports none of them."""

import logging
import os
import warnings

_NEVER_COMPILED = "deepspeed_shm_comm"
"""Only inference_all_reduce uses this op; it needs ninja and a compiler, and leaves 69 MB in /dev/shm per dead rank (DeepSpeed 0.19)."""


def import_libraries() -> None:
    """Imports the libraries. Computes nothing and starts no thread, so a process may fork afterwards."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asks the driver without making a context, which would not survive a fork
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops
        import transformers
    deepspeed.ops.__compatible_ops__[_NEVER_COMPILED] = False
    deepspeed.utils.logger.setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()


def prepare_libraries(*, num_threads: int) -> None:
    """Imports the libraries and sets this process's compute threads. Not for a process that will fork."""
    import_libraries()
    import torch

    torch.set_num_threads(num_threads)
