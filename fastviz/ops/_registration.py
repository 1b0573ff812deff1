"""What tells torch of each operator its output without running it, and its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_channels_last", "new_like", "refuse_derivative", "refuse_second_order", "register", "sum_dtype"]


def is_channels_last(x: Tensor) -> bool:
    """Whether the operators walk over x in channels_last order; a tensor that is both counts as contiguous."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def new_like(like: Tensor, shape: Sequence[int | torch.SymInt], *, dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor [.., .., .., ..] in the memory order of ``like``."""
    order = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=order)


def sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def register(name: str, fake: Callable[..., Any], setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    torch.library.register_fake(f"fastviz::{name}", fake)
    torch.library.register_autograd(f"fastviz::{name}", backward, setup_context=setup)


def refuse_derivative(name: str) -> None:
    """Make an operator raise where its derivative is asked for."""

    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError(f"fastviz.ops.{name} has no derivative")

    torch.library.register_autograd(f"fastviz::{name}", backward)


def refuse_second_order(name: str) -> None:
    """Make a backward operator raise where its own derivative is asked for."""

    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(f"fastviz.ops.{name} has no derivative of second order (double backward)")

    torch.library.register_autograd(f"fastviz::_{name}_backward", backward)
