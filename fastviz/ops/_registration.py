"""Registration with torch: each operator's fake implementation and derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "is_channels_last",
    "memory_format",
    "new_like",
    "refuse_derivative",
    "refuse_second_order",
    "register",
    "sum_dtype",
]


def is_channels_last(x: Tensor) -> bool:
    """Whether the operators walk over x in channels_last order; a tensor that is both counts as contiguous."""
    if x.dim() not in (4, 5) or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=memory_format(x.dim(), channels_last=True))


def memory_format(dims: int, *, channels_last: bool) -> torch.memory_format:
    """torch's memory format for pictures [N, C, H, W] or volumes [N, C, D, H, W]."""
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last_3d if dims == 5 else torch.channels_last


def new_like(like: Tensor, shape: Sequence[int | torch.SymInt], *, dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor of as many dimensions as ``like``, in its memory order."""
    order = memory_format(like.dim(), channels_last=is_channels_last(like))
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=order)


def sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def register(name: str, fake: Callable[..., Any], setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    torch.library.register_fake(f"fastviz::{name}", fake)
    torch.library.register_autograd(f"fastviz::{name}", backward, setup_context=setup)


def refuse_derivative(name: str) -> None:
    """Make an operator raise an error if its derivative is requested."""

    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError(f"fastviz.ops.{name} has no derivative")

    torch.library.register_autograd(f"fastviz::{name}", backward)


def refuse_second_order(name: str) -> None:
    """Make a backward operator raise an error if its own derivative is requested."""

    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(f"fastviz.ops.{name} has no derivative of second order (double backward)")

    torch.library.register_autograd(f"fastviz::_{name}_backward", backward)
