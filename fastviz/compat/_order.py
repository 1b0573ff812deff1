"""Whether a call of another tool computes in the tool's memory order, with equal bits, or in a faster one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from fastviz.execution.compiled import is_compiled
from fastviz.execution.fast_conv import memory_format

__all__ = ["in_fast_order", "may_round"]

Result = TypeVar("Result")

MIN_IMAGES = 4
"""Smaller batches give exactly the tool's bits: there is little to gain, and single images are often compared."""


def may_round(forward_func: object, inputs: tuple[Tensor, ...]) -> bool:
    """Whether sums may be computed in another order than in the tool.

    That is the case for uncompiled modules in evaluation mode that get one batch of :data:`MIN_IMAGES` or more images.
    In training mode random numbers would go to other positions, and a compiled module would be recompiled.
    """
    images = len(inputs) == 1 and inputs[0].dim() == 4 and len(inputs[0]) >= MIN_IMAGES
    return (
        images
        and isinstance(forward_func, nn.Module)
        and not any(module.training or is_compiled(module) for module in forward_func.modules())
    )


def in_fast_order(
    forward_func: object, inputs: tuple[Tensor, ...], compute: Callable[..., Result]
) -> Callable[..., Result]:
    """``compute``, called with channels_last images if that is allowed and makes the model faster.

    See :func:`fastviz.execution.fast_conv.memory_format.in_fast_order`. Either way the stack has one more frame, so
    that the stack level of warnings is the same.
    """
    if isinstance(forward_func, nn.Module) and may_round(forward_func, inputs):
        return memory_format.in_fast_order(forward_func, "model", compute, None)

    def run(*inputs: Tensor) -> Result:
        return compute(*inputs)

    return run
