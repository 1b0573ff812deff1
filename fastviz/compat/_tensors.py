"""Which tensors fastviz's operators can process instead of another tool's functions."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

__all__ = ["native"]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def native(x: object) -> TypeGuard[Tensor]:
    """Whether ``x`` is a plain tensor of real floating-point values on a CPU or CUDA, outside of ``torch.func``."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and isinstance(x, Tensor)
        and x.dtype in _DTYPES
        and x.layout is torch.strided
        and x.device.type in ("cpu", "cuda")
        # torch.func cannot differentiate operators that define their own derivative.
        and torch._C._functorch.peek_interpreter_stack() is None
    )
