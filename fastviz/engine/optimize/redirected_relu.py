"""Redirected ReLU: a gradient for objectives after rectifiers that are all off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastviz.engine.optimize.optimizers import per_row
from fastviz.execution.rectifiers import Rectifiers

__all__ = ["RedirectedReLU"]


class _Redirected(torch.autograd.Function):
    """``max(x, 0)``; a sample whose gradient would be zero everywhere gets the incoming gradient unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x > 0)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (active,) = ctx.saved_tensors
        passed: Tensor = grads[0] * active
        blocked = (passed == 0).reshape(len(passed), -1).all(1)
        return torch.where(per_row(blocked, passed), grads[0], passed)


class RedirectedReLU(Rectifiers):
    """A context in which rectifiers that would block a sample's whole gradient pass it on; others are unchanged.

    The gradient of a unit that is off is then that of its pre-activation, which shows how to switch it on. After the
    redirected ReLU of Olah, Mordvintsev, Schubert 2017, https://distill.pub/2017/feature-visualization.
    """

    written_by_hand = False

    def __init__(self) -> None:
        super().__init__("plain", None)

    def rectified(self, x: Tensor, upper: float | None) -> Tensor:
        """See the class."""
        passed: Tensor = _Redirected.apply(x)
        # Values are 0 or more already, so only the upper bound has an effect.
        return passed if upper is None else torch.nn.functional.hardtanh(passed, -1.0, upper)

    def rectified_(self, x: Tensor, upper: float | None) -> Tensor:
        """See the class."""
        return x.copy_(self.rectified(x, upper))
