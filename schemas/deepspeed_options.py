"""Which keys of the raw `deepspeed` section say what is computed, and so belong to a training artifact's identity.

Most of the section says how: which memory holds a tensor, how large a bucket is, whether communication overlaps. Such keys may
move the last bits of a result, as another machine would. The few that choose a number format, a scale, or which updates are
applied are a different experiment.
"""

from collections.abc import Mapping
from typing import Any

from schemas.frozen import thaw

AUTO = "auto"
"""The value that leaves a key to Headrace."""

NUMERIC_OPTIONS: frozenset[str] = frozenset(
    {
        # in which format, and at which scale, gradients are summed
        *("communication_data_type", "prescale_gradients", "gradient_predivide_factor"),
        *("data_types.grad_accum_dtype", "data_types.buffer_dtype"),
        # which updates are applied
        *("bf16.check_grad_overflow", "bf16.immediate_grad_update"),
        *("fp16.auto_cast", "fp16.initial_scale_power", "fp16.loss_scale_window"),
        *("fp16.hysteresis", "fp16.consecutive_hysteresis", "fp16.min_loss_scale"),
    }
)
"""Dotted keys that change numbers. One in doubt is here: too many cost a training that might have been spared, too few give wrong weights."""

_PRECISIONS = ("bf16", "fp16")


def numeric_options(section: Mapping[str, Any], *, precision: str) -> dict[str, Any]:
    """Returns what a raw section sets of `NUMERIC_OPTIONS`, by dotted key, as plain data.

    `auto` sets nothing, nor does the part of another precision: `fp16` has no effect on a training in bf16.

    Args:
        section: the raw section, a mapping of keys and sub-sections.
        precision: `training.precision`.
    """
    chosen: dict[str, Any] = {}
    for dotted in sorted(NUMERIC_OPTIONS):
        parent, _, name = dotted.rpartition(".")
        if parent in _PRECISIONS and parent != precision:
            continue
        place = section.get(parent) if parent else section
        if isinstance(place, Mapping) and name in place and place[name] != AUTO:
            chosen[dotted] = thaw(place[name])
    return chosen
