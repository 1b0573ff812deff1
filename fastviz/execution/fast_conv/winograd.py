"""3×3 convolutions of many channels with a quarter of the multiplications, where only images need gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastviz import ops

__all__ = ["Winograd", "convolved", "pays", "takes", "transformed"]

_CHANNELS = 64
"""With fewer channels, in or out, the transforms cost more than the products they save."""
_SHARE = 0.65
"""The largest share of the direct sum's products that still pays: tiles stick out of small maps."""
_WORTH_TRANSFORMS = 256
"""Fewest tiles of a batch for which transforming the weights again pays."""
_TILES = 128
"""Tiles at a time: enough for an efficient product, few enough to stay in the cache."""

# Lavin, Gray 2016, section 4.3: G of F(4×4, 3×3), one dimension. B and A are in csrc/kernels/cpu/winograd.cpp.
_KERNEL = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
           (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip


class Winograd(TorchFunctionMode):
    """Within the ``with`` block, convolutions for which it pays are computed by F(4×4, 3×3), all others by torch.

    Lavin, Gray 2016, "Fast Algorithms for Convolutional Neural Networks", https://arxiv.org/abs/1509.09308: 4×4 values
    of the output come from 6×6 of the input with 36 products a pair of channels instead of 144. They round more: an
    error of about 7e-6 of the largest value, where the direct sum has 1.5e-6.

    It pays on the CPU, in float32, for kernels of 3×3 with stride 1, padding 1 and no groups between many channels, on
    all but the smallest maps; here for weights that are parameters of a module. Only the input is given a gradient, the
    weights are not.

    Args:
        keep: whether the transforms of weights, with 8 times their memory, are kept as long as this object, for models
            that run again and again; else those of a layer are computed in each pass, forward and back.

    >>> conv, x = nn.Conv2d(128, 128, 3, padding=1), torch.randn(1, 128, 16, 16)
    >>> with torch.no_grad(), Winograd(keep=False):
    ...     fast = conv(x)
    >>> bool((fast - conv(x)).abs().max() < 1e-4)
    True
    """

    def __init__(self, *, keep: bool) -> None:
        super().__init__()
        self._keep = keep
        self._kept: dict[tuple[int, bool], tuple[Tensor, int, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.conv2d:
            return func(*args, **kwargs)
        call = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False))
        call |= kwargs
        with torch._C.DisableTorchFunction():  # other modes need not see what is asked of tensors here
            pays = _pays(call) and (self._keep or _tiles(call["input"]) >= _WORTH_TRANSFORMS)
        if not pays:
            return func(*args, **kwargs)
        result: Tensor = _Convolution.apply(call["input"], call.get("bias"), call["weight"], self._kernels)
        return result

    def _kernels(self, weight: Tensor, backwards: bool) -> Tensor:
        """:func:`transformed`, cached if ``keep`` is set."""
        if not self._keep:
            return transformed(weight, backwards=backwards)
        found = self._kept.get((id(weight), backwards))
        if found is None or found[0] is not weight or found[1] != weight._version:
            # in float64: once is enough, and sums are as precise as direct ones
            kernels = transformed(weight.double(), backwards=backwards).float()
            found = self._kept[id(weight), backwards] = weight, weight._version, kernels
        return found[2]


def takes(weight: Tensor) -> bool:
    """Whether convolutions with this ``weight`` [K, C, rows, columns], stride 1 and one group can be computed so."""
    K, C = weight.shape[:2]
    kernel = weight.shape[2:] == (3, 3) and min(C, K) >= _CHANNELS
    return kernel and weight.device.type == "cpu" and weight.dtype == torch.float32


def pays(x: Tensor, padding: Sequence[int]) -> bool:
    """Whether it is faster so for this input, [N, C, H, W] float32; ``padding`` as in :func:`convolved`."""
    h, w = x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2
    return 4 * (-(-h // 4)) * (-(-w // 4)) <= _SHARE * h * w


def _pays(call: dict[str, Any]) -> bool:
    x, weight = call["input"], call["weight"]
    return (
        isinstance(weight, nn.Parameter)
        and takes(weight)
        and x.dim() == 4
        and x.shape[1] == weight.shape[1]
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and pays(x, (1, 1))
        and not torch.is_autocast_enabled("cpu")
        and all(call.get(name, 1) in (1, (1, 1), [1, 1]) for name in ("stride", "dilation", "groups"))
        and call.get("padding", 0) in (1, (1, 1), [1, 1])
    )


def _tiles(x: Tensor) -> int:
    return len(x) * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, weight: Tensor, kernels: Callable[[Tensor, bool], Tensor]
    ) -> Tensor:
        ctx.kernels = kernels
        ctx.save_for_backward(weight)
        return convolved(x, kernels(weight, False), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return convolved(grads[0], ctx.kernels(weight, True), None), None, None, None


def convolved(
    x: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    padding: Sequence[int] = (1, 1),
    other: Tensor | None = None,
    rectify: bool = False,
) -> Tensor:
    """The convolution of ``x``, plus ``other``, rectified: [N, K, h, w] in channels_last memory.

    Args:
        x: [N, C, H, W], float32, on the CPU.
        kernels: [36, C, K], of :func:`transformed`.
        bias: [K].
        padding: zeros above and below, left and right.
        other: [N, K, h, w], added to the convolution.
        rectify: whether what is below 0 becomes 0.
    """
    N, _, H, W = x.shape
    h, w = H + 2 * padding[0] - 2, W + 2 * padding[1] - 2
    rows, columns = -(-h // 4), -(-w // 4)
    x = x.contiguous(memory_format=torch.channels_last)
    output = torch.empty(N, kernels.shape[2], h, w, dtype=x.dtype, memory_format=torch.channels_last)
    for begin in range(0, N * rows * columns, _TILES):
        end = min(begin + _TILES, N * rows * columns)
        tiles = ops.winograd_tiles(x, padding, (rows, columns), begin, end)
        ops.winograd_maps(output, torch.bmm(tiles, kernels), bias, other, rectify, begin)
    return output


def transformed(weight: Tensor, *, backwards: bool = False) -> Tensor:
    """The kernels of a ``weight`` [K, C, 3, 3] as the products take them.

    Returns:
        [36, C, K] (a view of [36, K, C]), or, for the gradient of the input, [36, K, C].
    """
    one = torch.tensor(_KERNEL, dtype=weight.dtype)
    K, C = weight.shape[:2]
    matrix = torch.kron(one, one)
    # The gradient is a convolution with the taps in reverse.
    kernels = (matrix.flip(1) if backwards else matrix) @ weight.detach().reshape(K * C, 9).T
    return kernels.view(36, K, C) if backwards else kernels.view(36, K, C).mT
