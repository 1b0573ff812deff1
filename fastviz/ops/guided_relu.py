"""ReLU with a chosen backward rule, and the same written over its input."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.ops._checks import check_supported
from fastviz.ops._native import native
from fastviz.ops._registration import is_channels_last, memory_format, new_like, refuse_second_order, register

__all__ = ["Rule", "guided_relu", "guided_relu_"]

Rule = Literal["plain", "guided", "deconvnet"]


def guided_relu(x: Tensor, rule: Rule = "guided", upper: float | None = None) -> Tensor:
    """ReLU of x, max(x, 0), with a chosen backward rule; bounded, min(max(x, 0), upper), if ``upper`` is given.

    With R the gradient that comes from above:

    - ``"plain"``: R·(x > 0), the derivative;
    - ``"guided"``: R·(x > 0)·(R > 0), Springenberg et al. 2015, https://arxiv.org/abs/1412.6806;
    - ``"deconvnet"``: R·(R > 0), Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901.

    The rule is that of the maximum; a bound has its derivative, so that R is first multiplied by (x < upper). All
    comparisons are strict at zero and at the bound. NaN stays NaN, as in torch's ReLU: it counts as above 0, in x and
    in R. One bit per value is kept for the backward pass, none for ``"deconvnet"`` without a bound.

    Args:
        x: any shape.
        rule: the backward rule.
        upper: above 0, rounded to the dtype of ``x``; None is no bound.

    Returns:
        The shape and the memory order of ``x``.

    Raises:
        TypeError: ``x`` is no floating-point tensor, or ``upper`` no number.
        ValueError: ``rule`` is not one of the three, or ``upper`` not above 0.

    Example:
        >>> x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
        >>> guided_relu(x).backward(torch.tensor([1.0, -1.0, 1.0]))
        >>> x.grad.tolist()
        [0.0, 0.0, 1.0]
    """
    checks.tensor(x, "x")
    checks.one_of(rule, "rule", ("plain", "guided", "deconvnet"))
    if upper is not None:
        checks.positive(upper, "upper")
    check_supported(x, "x")
    return native.guided_relu(x, rule, upper, _relu_keeps_mask(x, rule, upper))[0]


def guided_relu_(x: Tensor, rule: Rule = "guided", upper: float | None = None) -> Tensor:
    """:func:`guided_relu` written over ``x``, which is returned: it needs no memory for the output and half of the
    traffic.

    Not for views, and not for code that is compiled by ``torch.compile``.

    Args:
        x: any shape, in contiguous or channels_last memory.
        rule: the backward rule.
        upper: above 0, rounded to the dtype of ``x``; None is no bound.

    Returns:
        ``x`` itself.

    Raises:
        TypeError: ``x`` is no floating-point tensor, or ``upper`` no number.
        ValueError: ``x`` is in other memory; ``rule`` is not one of the three, or ``upper`` not above 0.

    >>> x = torch.tensor([-1.0, 2.0])
    >>> guided_relu_(x), x
    (tensor([0., 2.]), tensor([0., 2.]))
    """
    checks.tensor(x, "x")
    checks.one_of(rule, "rule", ("plain", "guided", "deconvnet"))
    if not (x.is_contiguous() or is_channels_last(x)):
        raise ValueError(f"x should be in contiguous or channels_last memory, to be written over, got {x.stride()}")
    if upper is not None:
        checks.positive(upper, "upper")
    check_supported(x, "x")
    result: Tensor = _InPlaceRectifier.apply(x, rule, upper, _relu_keeps_mask(x, rule, upper))
    return result


def _relu_keeps_mask(x: Tensor, rule: str, upper: float | None) -> bool:
    return (rule != "deconvnet" or upper is not None) and x.requires_grad and torch.is_grad_enabled()


class _InPlaceRectifier(torch.autograd.Function):
    """:func:`guided_relu` written over its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, upper: float | None, with_mask: bool) -> Tensor:
        ctx.rule, ctx.channels_last = rule, is_channels_last(x)
        ctx.save_for_backward(native._guided_relu_in_place(x, rule, upper, with_mask))
        ctx.mark_dirty(x)
        # so that autograd refuses to use values saved before
        torch.autograd.graph.increment_version(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return native._guided_relu_backward(grads[0], mask, ctx.rule, ctx.channels_last), None, None, None


def _guided_relu_fake(x: Tensor, rule: str, upper: float | None, with_mask: bool) -> tuple[Tensor, Tensor]:
    return new_like(x, x.shape), _relu_mask(x, rule, upper, with_mask)


@torch.library.register_fake("fastviz::_guided_relu_in_place")
def _relu_mask(x: Tensor, rule: str, upper: float | None, with_mask: bool) -> Tensor:
    return x.new_empty((x.numel() + 7) // 8 if with_mask else 0, dtype=torch.uint8)


def _guided_relu_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.rule, _, _ = inputs
    ctx.channels_last = is_channels_last(x)
    ctx.save_for_backward(output[1])


def _guided_relu_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (mask,) = ctx.saved_tensors
    return native._guided_relu_backward(grad, mask, ctx.rule, ctx.channels_last), None, None, None


@torch.library.register_fake("fastviz::_guided_relu_backward")
def _guided_relu_backward_fake(grad: Tensor, mask: Tensor, rule: str, channels_last: bool) -> Tensor:
    order = memory_format(grad.dim(), channels_last=channels_last)
    return torch.empty(grad.shape, dtype=grad.dtype, device=grad.device, memory_format=order)


register("guided_relu", _guided_relu_fake, _guided_relu_setup, _guided_relu_backward)
refuse_second_order("guided_relu")
