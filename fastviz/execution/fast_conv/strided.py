"""The gradient of strided convolutions of pictures, as one dense convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["StridedGradient"]

_CHANNELS = 4
"""The most channels of a picture."""


class StridedGradient(TorchFunctionMode):
    """Within the ``with`` block, on a CPU, first convolutions with a stride get their gradient for the picture from a
    dense convolution.

    Of a convolution with stride s, the gradient for every s-th pixel is a dense convolution of the gradient of its
    output with every s-th weight. All s² such phases are computed as the channels of one convolution, whose output is
    then put in place: sums of the same products, in another order.

    Their weights get no gradient: this is for passes that need that of the picture alone. torch computes all other
        convolutions.

    >>> conv, x = torch.nn.Conv2d(3, 8, 7, stride=2), torch.randn(1, 3, 32, 32, requires_grad=True)
    >>> (exact,) = torch.autograd.grad(conv(x).sum(), x)
    >>> with StridedGradient():
    ...     (fast,) = torch.autograd.grad(conv(x).sum(), x)
    >>> torch.testing.assert_close(fast, exact)
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d:
            call = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False))
            call |= kwargs
            stride, padding = _pair(call.get("stride", 1)), _pair(call.get("padding", 0))
            if stride is not None and padding is not None and stride[0] == stride[1] > 1:
                with torch._C.DisableTorchFunction():  # other modes need not see what is asked of tensors here
                    pays = _pays(call)
                if pays:
                    return _Convolution.apply(call["input"], call["weight"], call.get("bias"), stride[0], padding)
        return func(*args, **kwargs)


def _pair(value: object) -> tuple[int, int] | None:
    """A stride or padding for both directions; None for words."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, (tuple, list)) and all(isinstance(each, int) for each in value):
        return (value[0], value[-1])
    return None


def _pays(call: dict[str, Any]) -> bool:
    x, weight = call["input"], call["weight"]
    return (
        isinstance(x, Tensor)
        and x.device.type == "cpu"
        and x.requires_grad
        and torch.is_grad_enabled()
        and x.dim() == weight.dim() == 4
        and x.shape[1] == weight.shape[1] <= _CHANNELS
        and all(call.get(name, 1) in (1, (1, 1), [1, 1]) for name in ("dilation", "groups"))
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.of = x.shape, x.dtype, stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        shape, dtype, stride, padding = ctx.of
        return _gradient(grads[0], weight, shape, stride, padding).to(dtype), None, None, None, None


def _gradient(grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, padding: tuple[int, int]) -> Tensor:
    """The gradient for an input of this ``shape`` [N, C, H, W], of that of the output, [N, K, h, w]."""
    K, C, height, width = weight.shape
    N, _, H, W = shape
    rows, columns = -(-height // stride), -(-width // stride)
    taps = F.pad(weight.detach(), (0, columns * stride - width, 0, rows * stride - height)).to(grad.dtype)
    # [stride, stride, C, K, rows, columns]: every phase has weights of its own, in reverse.
    phases = taps.view(K, C, rows, stride, columns, stride).permute(3, 5, 1, 0, 2, 4).flip(4, 5)
    found = F.conv2d(grad, phases.reshape(-1, K, rows, columns), padding=(rows - 1, columns - 1))
    h, w = found.shape[2:]
    padded = found.view(N, stride, stride, C, h, w).permute(0, 3, 4, 1, 5, 2).reshape(N, C, h * stride, w * stride)
    # Pixels beyond the last window have no gradient.
    right, below = padding[1] + W - w * stride, padding[0] + H - h * stride
    whole = F.pad(padded, (0, max(0, right), 0, max(0, below)))
    return whole[:, :, padding[0] : padding[0] + H, padding[1] : padding[1] + W].contiguous()
