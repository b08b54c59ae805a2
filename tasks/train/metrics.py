"""What is measured along the way, appended line by line to a local file that the agent publishes. Rank 0 writes.

MFU is the share of the peak that the model's own arithmetic makes up: (6 N + 12 L H Q T) FLOPs per token (Chowdhery et al.,
"PaLM", 2022, appendix B), N parameters, L layers, H heads of size Q, T tokens per sequence. The peak is the data sheet's for
known GPUs; elsewhere that of a matrix product in the number format of training, measured for 30 ms after the first step.
"""

import resource
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from schemas.progress import MetricPoint

_GPU_PEAK_FLOPS: Mapping[str, float] = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "V100": 125e12}
"""Dense bf16 (fp16 for V100) FLOPs per second by the name of the device, from the data sheets."""
_GEMM_SIZE = 512
_MEASURE_S = 0.03
_PAGE_BYTES = resource.getpagesize()


class MetricsFile:
    """The metric points of one epoch."""

    def __init__(self, scratch_dir: Path, *, epoch: int, from_step: int = 0, rank: int = 0) -> None:
        """Args: scratch_dir: node-local folder of this epoch. from_step: updates applied when it starts."""
        self._epoch, self._from_step = epoch, from_step
        self._seconds: dict[str, float] = {}
        self._file = open(scratch_dir / f"metrics-r{rank:04d}.jsonl", "ab", buffering=0)  # noqa: SIM115  # lives as long as the epoch

    def append(
        self, step: int, values: Mapping[str, float], *, text: Mapping[str, str] | None = None, seconds: Mapping[str, float] | None = None
    ) -> None:
        """Writes one line at once: a killed rank loses no point. `seconds`: where the time since the last line went; the file counts on."""
        for part, passed in (seconds or {}).items():
            self._seconds[part] = self._seconds.get(part, 0.0) + passed
        counters = {part: round(total, 6) for part, total in self._seconds.items()}
        point = MetricPoint(
            step=step, at=time.time(), epoch=self._epoch, values=dict(values), text=dict(text or {}), seconds=counters, from_step=self._from_step
        )
        self._file.write(point.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Efficiency:
    """Model FLOPs utilisation. The peak is measured when it is first asked for: after the first step, so that a restart does not wait for it."""

    def __init__(self, *, flops_per_step: float, world_size: int, device: torch.device, dtype: torch.dtype) -> None:
        """Args: flops_per_step: over all ranks. dtype: of the forward pass."""
        self._flops_per_step, self._world_size = flops_per_step, world_size
        self._device, self._dtype = device, dtype

    @cached_property
    def peak_flops(self) -> float:
        """FLOPs per second over all ranks, which are taken to be alike."""
        return peak_flops(self._device, dtype=self._dtype) * self._world_size

    def mfu(self, step_s: float) -> float:
        """Returns the share of the peak that a step of `step_s` seconds made of it."""
        return self._flops_per_step / step_s / self.peak_flops


def flops_per_token(num_parameters: int, *, model_config: Mapping[str, Any], sequence_length: int) -> float:
    """Returns 6 N + 12 L H Q T; the attention term is left out for a model whose configuration does not tell L, H and Q."""
    layers, hidden, heads = (model_config.get(key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    attention = 0.0
    if isinstance(layers, int) and isinstance(hidden, int) and isinstance(heads, int):
        head_size = model_config.get("head_dim") or hidden // heads
        attention = 12.0 * layers * heads * head_size * sequence_length
    return 6.0 * num_parameters + attention


def peak_flops(device: torch.device, *, dtype: torch.dtype) -> float:
    """Returns this rank's peak FLOPs per second: the data sheet's, or the best of some matrix products."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, flops in _GPU_PEAK_FLOPS.items():
            if known in name:
                return flops
    left = torch.ones(_GEMM_SIZE, _GEMM_SIZE, dtype=dtype, device=device)
    right = torch.ones_like(left)
    best, deadline = float("inf"), time.perf_counter() + _MEASURE_S
    while (began := time.perf_counter()) < deadline or best == float("inf"):
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * _GEMM_SIZE**3 / best


def memory_bytes(device: torch.device) -> dict[str, float]:
    """Returns resident and peak resident memory of this process, and the GPU's peak where there is one."""
    resident = int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES
    values = {"memory_rss_bytes": float(resident), "memory_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}
    if device.type == "cuda":
        values["memory_peak_gpu_bytes"] = float(torch.cuda.max_memory_allocated(device))
    return values
