"""The numbers of DeepSpeed's dynamic loss scaler (fp16), out of it and back into it. Empty for bf16 and fp32."""

from collections.abc import Mapping
from typing import Any

_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def loss_scale_numbers(optimizer: Any) -> dict[str, float]:
    """Returns the scaler's state as plain numbers; empty when the loss is not scaled dynamically."""
    scaler = _scaler(optimizer)
    return {} if scaler is None else {field: getattr(scaler, field) for field in _FIELDS if hasattr(scaler, field)}


def restore_loss_scale(optimizer: Any, numbers: Mapping[str, float]) -> None:
    """Puts the numbers back. A scaler of another ZeRO stage ignores the fields that it does not have."""
    scaler = _scaler(optimizer)
    for field, value in numbers.items():
        if scaler is not None and hasattr(scaler, field):
            setattr(scaler, field, value)


def _scaler(optimizer: Any) -> Any | None:
    """Returns the object that holds the numbers: ZeRO has a `loss_scaler`, the optimizer without ZeRO a `loss_scale_config`."""
    for name, is_dynamic in (("loss_scaler", "dynamic"), ("loss_scale_config", "dynamic_loss_scale")):
        holder = getattr(optimizer, name, None)
        if holder is not None and getattr(holder, is_dynamic, False):
            return holder
    return None
