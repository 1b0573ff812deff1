"""The filters of a network: the weights of a convolution as pictures."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import UninitializedParameter

from fastviz._util import checks
from fastviz.execution.hooks import layer_module
from fastviz.images import tensors

__all__ = ["filter_grid", "filters"]

_SIDE = 1600
"""The approximate width of a grid of filters in pixels, as long as every weight gets a pixel."""


def filters(
    model: nn.Module,
    layer: str | None = None,
    *,
    scale: Literal["each", "together"] | None = "each",
    unit_norm: bool = False,
) -> Tensor:
    """The filters of a convolution, [K, C, h, w], scaled to 0 to 1, where 0.5 is a weight of zero.

    Filter k holds the weights of output channel k for the C input channels; in the first layer these are red, green and
    blue, so a filter is a colour picture. Weights are scaled by ``0.5 + 0.5 · w / m`` with m the largest magnitude, so
    grey always means a weight of zero. Krizhevsky, Sutskever, Hinton 2012, "ImageNet Classification with Deep
    Convolutional Neural Networks", figure 3, https://papers.nips.cc/paper/4824; they stretch each filter from its
    smallest to its largest weight, so zero is not always grey.

    Args:
        model: any module.
        layer: dotted name of a 2-d convolution, also grouped (C is then the number of channels in a group) or
            transposed (filter k contributes to output channel k). None is the first 2-d convolution of the model.
        scale: ``"each"``: one m per filter, over all its channels; ``"together"``: one m for the layer, which shows
            which filters have small weights; None: the weights without scaling.
        unit_norm: divide each filter by its norm first: ``w / ‖w‖`` is the input of norm 1, of the size of the filter,
            with the highest response (Cauchy–Schwarz). A filter of zeros stays zero.

    Returns:
        A new tensor on the device of the weights, in their dtype.

    Raises:
        TypeError: ``model`` is not a module, or ``layer`` not a string.
        ValueError: no such layer, a layer that is not a 2-d convolution or has no weights yet, weights that are not
            finite, no convolution at all.

    >>> model = nn.Sequential(nn.Conv2d(3, 16, 7), nn.ReLU(), nn.Conv2d(16, 20, 5))
    >>> filters(model).shape, filters(model, "2").shape
    (torch.Size([16, 3, 7, 7]), torch.Size([20, 16, 5, 5]))
    """
    checks.not_exporting()
    if scale is not None:
        checks.one_of(scale, "scale", ("each", "together"))
    name, module = _first(model) if layer is None else (layer, layer_module(model, layer))
    weight = _weight(name, module)
    checks.device(weight.device, "model")
    if not weight.isfinite().all():
        raise ValueError(f"layer {name!r} should have finite weights, got NaN or infinity")
    if unit_norm:
        norm = torch.linalg.vector_norm(weight.double(), dim=(1, 2, 3), keepdim=True)
        weight = (weight / torch.where(norm > 0, norm, 1)).to(weight.dtype)
    if scale is None:
        return weight
    return tensors.normalize(weight, symmetric=True, dims=3 if scale == "each" else 4)


def _first(model: nn.Module) -> tuple[str, nn.Module]:
    """The first 2-d convolution in the order of ``named_modules()``."""
    for name, module in checks.module(model).named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            return name, module
    raise ValueError("model should have a 2-d convolution, and has none")


def _weight(name: str, module: nn.Module) -> Tensor:
    """A copy of the weights as [K, C of a group, h, w]."""
    if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        raise ValueError(f"layer {name!r} should be a 2-d convolution, got {type(module).__name__}")
    if isinstance(module.weight, UninitializedParameter):
        raise ValueError(f"layer {name!r} has no weights before its first forward pass")
    weight = module.weight.detach().clone()
    if not isinstance(module, nn.ConvTranspose2d):
        return weight
    # [C, K of a group, h, w], input channels in order of groups
    groups = weight.view(module.groups, -1, *weight.shape[1:])
    return groups.transpose(1, 2).reshape(module.out_channels, -1, *weight.shape[2:])


def filter_grid(filters: Tensor, *, magnify: int | None = None) -> Tensor:
    """A picture [3, H, W] of ``filters``, enlarged without smoothing so that single weights are visible.

    Filters of three channels are colour pictures in rows of ⌈√K⌉. Others are grey, with one row per filter and one
    column per channel; filters of one channel are arranged in a square.

    Args:
        filters: [K, C, h, w] in 0 to 1, see :func:`filters`; for a large layer, a part such as ``filters[:64, :64]`` is
            easier to view.
        magnify: pixels per weight; None makes the picture about 1,600 pixels wide, with 1 to 24 pixels per weight.

    Returns:
        float32 [3, H, W] in 0 to 1, on the device of ``filters``.

    Raises:
        TypeError, ValueError: a wrong shape, values outside 0 to 1.

    >>> filter_grid(torch.rand(16, 3, 7, 7), magnify=4).shape
    torch.Size([3, 137, 137])
    """
    checks.tensor(filters, "filters", dims=(4,), layout="[K, C, h, w]")
    tensors.check_range(filters, "filters")
    K, C, h, w = filters.shape
    tiles = filters if C == 3 else filters.flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
    columns = C if C not in (1, 3) else None
    across = columns or max(1, round(K**0.5))
    factor = checks.whole_number(magnify, "magnify", minimum=1) if magnify is not None else 0
    factor = factor or max(1, min(24, _SIDE // (across * (max(h, w) + 1))))
    larger = functional.interpolate(tiles.float(), scale_factor=factor, mode="nearest")
    gap = max(1, min(6, round(factor * max(h, w) / 6)))
    return tensors.grid(larger, columns=columns, padding=gap)
