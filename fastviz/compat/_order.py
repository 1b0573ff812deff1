"""The order in which calls of other tools compute: theirs, bit by bit, or a faster one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from fastviz.execution.compiled import is_compiled
from fastviz.execution.fast_conv import memory_format

__all__ = ["in_fast_order", "may_round"]

Result = TypeVar("Result")

LEAST_IMAGES = 4
"""Fewer images give the tool's own bits: there is less to gain, and people compare single images."""


def may_round(forward_func: object, inputs: tuple[Tensor, ...]) -> bool:
    """Whether sums may run in another order than in the tool: for larger batches of images through whole modules.

    That is for modules in evaluation mode that are not compiled and take one batch of :data:`LEAST_IMAGES` or more. In
    training mode random numbers would fall on other places of the maps, and a compiled module would be compiled anew.
    """
    images = len(inputs) == 1 and inputs[0].dim() == 4 and len(inputs[0]) >= LEAST_IMAGES
    return (
        images
        and isinstance(forward_func, nn.Module)
        and not any(module.training or is_compiled(module) for module in forward_func.modules())
    )


def in_fast_order(
    forward_func: object, inputs: tuple[Tensor, ...], compute: Callable[..., Result]
) -> Callable[..., Result]:
    """``compute``, given the images in channels_last memory where that makes the model faster, and may be done.

    See :func:`fastviz.execution.fast_conv.memory_format.in_fast_order`. Either way there is one more function on the
    stack.
    """
    if isinstance(forward_func, nn.Module) and may_round(forward_func, inputs):
        return memory_format.in_fast_order(forward_func, "model", compute, None)

    def run(*inputs: Tensor) -> Result:
        return compute(*inputs)

    return run
