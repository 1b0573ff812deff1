"""3×3 convolutions of many channels with a quarter of the multiplications, where only images need gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["Winograd"]

_CHANNELS = 128
"""Fewer channels in or out: the transforms cost more than the products they save."""
_PLACES = 256
"""Smaller maps: too few tiles for an efficient product."""
_TILES = 128
"""Tiles at a time: as many as a product is efficient for, as few as stay in the cache."""

# Lavin, Gray 2016, section 4.3: Bᵀ, G and Aᵀ of F(4×4, 3×3), one dimension.
_INPUT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
          (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))  # fmt: skip
_KERNEL = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
           (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class Winograd(TorchFunctionMode):
    """Inside, convolutions for which it pays are computed by F(4×4, 3×3): all others as ever.

    Lavin, Gray 2016, "Fast Algorithms for Convolutional Neural Networks", https://arxiv.org/abs/1509.09308: 4×4 values
    of the output come from 6×6 of the input with 36 products a pair of channels instead of 144. They round more: an
    error of about 7e-6 of the largest value, where the direct sum has 1.5e-6.

    It pays on the CPU, in float32, for kernels of 3×3 with stride 1, padding 1 and no groups, whose weights are
    parameters of a module, between 128 or more channels on maps of 256 places or more. Only the input is given a
    gradient, the weights are not. Their transforms are kept as long as this object: 8 times their memory.

    >>> conv, x = nn.Conv2d(128, 128, 3, padding=1), torch.randn(1, 128, 16, 16)
    >>> with torch.no_grad(), Winograd():
    ...     fast = conv(x)
    >>> bool((fast - conv(x)).abs().max() < 1e-4)
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[int, tuple[Tensor, int, Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.conv2d:
            return func(*args, **kwargs)
        call = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False))
        call |= kwargs
        if not _pays(call):
            return func(*args, **kwargs)
        result: Tensor = _Convolution.apply(call["input"], call.get("bias"), *self._transformed(call["weight"]))
        return result

    def _transformed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The kernels as the products take them, [36, C, K], and those of the gradient, [36, K, C]."""
        found = self._kept.get(id(weight))
        if found is None or found[0] is not weight or found[1] != weight._version:
            with torch.no_grad():
                forward = _kernels(weight.permute(2, 3, 1, 0))
                backward = _kernels(weight.flip(2, 3).permute(2, 3, 0, 1))
            found = self._kept[id(weight)] = weight, weight._version, forward, backward
        return found[2], found[3]


def _pays(call: dict[str, Any]) -> bool:
    x, weight = call["input"], call["weight"]
    return (
        isinstance(weight, nn.Parameter)
        and x.dim() == 4
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= _CHANNELS
        and x.shape[1] == weight.shape[1]
        and x.shape[2] * x.shape[3] >= _PLACES
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and all(call.get(name, 1) in (1, (1, 1), [1, 1]) for name in ("stride", "dilation", "groups"))
        and call.get("padding", 0) in (1, (1, 1), [1, 1])
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.kernels = backward
        return _convolved(x, forward, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _convolved(grads[0], ctx.kernels, None), None, None, None


def _both(matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """The matrix of a transform along two dimensions."""
    one = torch.tensor(matrix, dtype=torch.float32)
    return torch.kron(one, one)


def _kernels(taps: Tensor) -> Tensor:
    """Kernels [3, 3, C, K] transformed: [36, C, K]."""
    return (_both(_KERNEL) @ taps.reshape(9, -1)).view(36, *taps.shape[2:])


def _convolved(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of ``x`` [N, C, H, W] with the ``kernels`` [36, C, K]: [N, K, H, W] in channels_last memory."""
    N, C, H, W = x.shape
    K = kernels.shape[2]
    rows, columns = -(-H // 4), -(-W // 4)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + 4 * columns - W, 1, 1 + 4 * rows - H)).contiguous()
    output = torch.empty(N, K, 4 * rows, 4 * columns, dtype=x.dtype, memory_format=torch.channels_last)
    lines = output.permute(0, 2, 3, 1)
    down, across = _both(_INPUT), _both(_OUTPUT)
    step = min(rows, max(1, _TILES // columns))
    buffers = [x.new_empty(step * columns * size) for size in (36 * C, 36 * C, 36 * K, 16 * K)]
    image, line, place, _ = padded.stride()
    for n in range(N):
        for first in range(0, rows, step):
            count = min(step, rows - first)
            tiles = count * columns
            sizes = ((36, tiles * C), (36, tiles * C), (36, tiles * K), (16, tiles * K))
            read, left, product, made = (
                buffer[: a * b].view(a, b) for buffer, (a, b) in zip(buffers, sizes, strict=True)
            )
            overlapping = padded.as_strided(
                (6, 6, count, columns, C), (line, place, 4 * line, 4 * place, 1), n * image + first * 4 * line
            )
            read.view(overlapping.shape).copy_(overlapping)
            torch.mm(down, read, out=left)
            torch.bmm(left.view(36, tiles, C), kernels, out=product.view(36, tiles, K))
            torch.mm(across, product, out=made)
            there = lines[n, 4 * first : 4 * (first + count)].view(count, 4, columns, 4, K)
            there.copy_(made.view(4, 4, count, columns, K).permute(2, 0, 3, 1, 4))
    if bias is not None:
        lines += bias
    # A copy, not a view, because rectifiers in place cannot work on views that come from an autograd function.
    whole = output.shape[2:] == (H, W)
    return output if whole else output[:, :, :H, :W].contiguous(memory_format=torch.channels_last)
