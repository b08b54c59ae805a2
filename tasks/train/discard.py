"""Updates that do not happen: how DeepSpeed is made to drop the gradients of a step, and to notice by itself that it must.

DeepSpeed has a way out of a step whose fp16 gradients overflowed: gradients are cleared, weights and moments stay as they are. These functions
open that way for any step and number format. All names are DeepSpeed 0.19's; the tests of this module fail when a version moves them.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def skip_invalid_norms(optimizer: Any) -> None:
    """Makes ZeRO 1 and 2 in bf16 skip an update whose global gradient norm is not finite, as they do in fp16 and fp32, and all else does anyway.

    DeepSpeed would multiply such gradients by 1 / inf and apply the NaNs. Its `check_grad_overflow` looks at every gradient and adds a collective;
    the norm, which is computed in any case and is the same on all ranks, tells as much.
    """
    if getattr(optimizer, "check_grad_overflow", None) is False:
        optimizer.check_grad_overflow = True
        optimizer.check_overflow = lambda **_: None


@contextlib.contextmanager
def discarding(optimizer: Any, *, zero_stage: int) -> Iterator[None]:
    """Within this context, the engine's `step` clears the gradients and changes nothing else, the loss scale included.

    Args:
        optimizer: DeepSpeed's, or torch's own where DeepSpeed wraps nothing (fp32 without ZeRO).
        zero_stage: of the engine.
    """

    def overflows(*_: Any, **__: Any) -> bool:
        optimizer.overflow = True
        return True

    def drops(*_: Any, **__: Any) -> None:
        optimizer.overflow = True
        optimizer.clear_hp_grads()
        optimizer.clear_lp_grads()

    with contextlib.ExitStack() as stack:
        if hasattr(optimizer, "clear_hp_grads"):  # the optimizer for bf16 with fp32 accumulation, which knows no other way out than a bad norm
            stack.enter_context(_replaced(optimizer, {"step": drops}))
        elif zero_stage == 3:
            stack.enter_context(_replaced(optimizer, {"_overflow_check_and_loss_scale_update": overflows, "_update_scale": _nothing}))
        elif zero_stage > 0:
            stack.enter_context(_replaced(optimizer, {"check_grad_overflow": True, "check_overflow": overflows, "_update_scale": _nothing}))
        elif hasattr(optimizer, "overflow_checker"):
            stack.enter_context(_replaced(optimizer, {"_update_scale": _nothing}))
            stack.enter_context(_replaced(optimizer.overflow_checker, {"check": overflows, "has_overflow": overflows}))
        else:
            stack.enter_context(_replaced(optimizer, {"step": _nothing}))
        yield


def _nothing(*_: Any, **__: Any) -> None:
    """Does nothing, whatever it is asked."""


@contextlib.contextmanager
def _replaced(target: Any, attributes: Mapping[str, Callable[..., Any] | bool]) -> Iterator[None]:
    """Gives `target` other attributes of its own, and takes them away again.

    Raises:
        AttributeError: this version of DeepSpeed has no such attribute, so replacing it would have no effect.
    """
    missing = [name for name in attributes if not hasattr(target, name)]
    if missing:
        raise AttributeError(f"{type(target).__name__} has no {', '.join(missing)}")
    own = {name: vars(target)[name] for name in attributes if name in vars(target)}
    for name, value in attributes.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name in attributes:
            delattr(target, name)
        for name, value in own.items():
            setattr(target, name, value)
