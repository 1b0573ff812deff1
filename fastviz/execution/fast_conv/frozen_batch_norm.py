"""The gradient of batch normalization in evaluation mode: one multiplication."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["FrozenBatchNorm"]

_NAMES = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


class FrozenBatchNorm(TorchFunctionMode):
    """Within the ``with`` block, on a CPU, batch normalization with running statistics gets its gradient by one
    multiplication.

    It is y = (x − mean) · weight / √(var + eps) + bias, channel by channel, so the gradient for x is that for y times
    weight / √(var + eps). The operator of torch also keeps x and sums over the batch, for the gradients of weight and
    bias. Here those get none: this is for passes that need the gradient of the picture alone.

    >>> norm, x = torch.nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4, requires_grad=True)
    >>> (exact,) = torch.autograd.grad(norm(x).square().sum(), x)
    >>> with FrozenBatchNorm():
    ...     (fast,) = torch.autograd.grad(norm(x).square().sum(), x)
    >>> torch.testing.assert_close(fast, exact)
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            call = dict(zip(_NAMES, args, strict=False)) | kwargs
            with torch._C.DisableTorchFunction():  # other modes need not see what is asked of tensors here
                pays = _pays(call)
            if pays:
                names = ("input", "running_mean", "running_var", "weight", "bias")
                return _BatchNorm.apply(*(call.get(name) for name in names), call.get("eps", 1e-5))
        return func(*args, **kwargs)


def _pays(call: dict[str, Any]) -> bool:
    x = call["input"]
    # All in one dtype: mixed dtypes round differently.
    tensors = [call.get(name) for name in ("running_mean", "running_var", "weight", "bias")]
    return (
        isinstance(x, Tensor)
        and x.device.type == "cpu"
        and x.requires_grad
        and torch.is_grad_enabled()
        and not call.get("training", False)
        and tensors[0] is not None
        and tensors[1] is not None
        and all(each is None or each.dtype == x.dtype for each in tensors)
    )


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(scale if weight is None else scale * weight)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return grads[0] * scale.view(1, -1, *(1,) * (grads[0].dim() - 2)), None, None, None, None, None
