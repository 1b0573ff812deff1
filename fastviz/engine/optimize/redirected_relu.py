"""Redirected rectifiers: a gradient for objectives behind rectifiers that are all off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastviz.execution.rectifiers import Rectifiers

__all__ = ["RedirectedReLU"]


class _Redirected(torch.autograd.Function):
    """``max(x, 0)``; a sample whose gradient would be zero everywhere passes the incoming gradient on unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x > 0)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (active,) = ctx.saved_tensors
        passed: Tensor = grads[0] * active
        blocked = (passed == 0).reshape(len(passed), -1).all(1)
        return torch.where(blocked.view(-1, *(1,) * (passed.dim() - 1)), grads[0], passed)


class RedirectedReLU(Rectifiers):
    """Inside, rectifiers that would block the whole gradient of a sample let it through; all others are unchanged.

    The gradient of a unit that is off is then that of what stands before its rectifier, which says how to switch it on.
    After the redirected rectifiers of Olah, Mordvintsev, Schubert 2017, https://distill.pub/2017/feature-visualization.
    """

    written_by_hand = False

    def __init__(self) -> None:
        super().__init__("plain", None)

    def rectified(self, x: Tensor, upper: float | None) -> Tensor:
        """See the class."""
        passed: Tensor = _Redirected.apply(x)
        # What comes is 0 or more: only the upper bound acts.
        return passed if upper is None else torch.nn.functional.hardtanh(passed, -1.0, upper)

    def rectified_(self, x: Tensor, upper: float | None) -> Tensor:
        """See the class."""
        return x.copy_(self.rectified(x, upper))
