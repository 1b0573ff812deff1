"""Maps for measures: one number per pixel of the image, and the order in which pixels change."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fastviz._util import checks
from fastviz.engine.masking.segments import label_maps

__all__ = ["Channels", "Regions", "Ties", "labels_of", "own_maps", "pixel_maps", "rank", "region_means", "scaled"]

Channels = Literal["max_abs", "sum", "sum_abs"]
"""How a map with one number per channel is reduced to one number per pixel: the largest absolute value, the sum, or the
sum of absolute values."""

Ties = Literal["first", "last"]
"""Which of equal pixels ranks higher: the first in row-major order, or the last."""

Regions = int | tuple[int, int] | Tensor | None
"""What changes together. None: single pixels; a number or (height, width): adjacent windows of this size in pixels,
cropped at the border; a tensor of whole numbers [H, W] or [N, H, W]: the segments of each image."""


def own_maps(maps: object, count: int, channels: Channels = "max_abs", argument: str = "maps") -> Tensor:
    """``maps`` at their own resolution, [N, h, w], in float32 at least.

    Args:
        maps: [N, h, w], or [N, C, h, w] with one number per channel.
        count: N.
        channels: see :data:`Channels`.
        argument: the name of the maps in errors.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: another shape or number of maps; values that are not finite.
    """
    found = checks.tensor(maps, argument, dims=(3, 4), layout="[N, h, w] or [N, C, h, w]").detach()
    checks.one_of(channels, "channels", ("max_abs", "sum", "sum_abs"))
    if len(found) != count:
        raise ValueError(f"{argument} should have one map for each of {count} images, got {len(found)}")
    if 0 in found.shape[1:]:
        raise ValueError(f"{argument} should have at least one value, got shape {list(found.shape)}")
    if not bool(found.isfinite().all()):
        raise ValueError(f"{argument} should be finite, got NaN or infinity")
    wide = found.to(torch.promote_types(found.dtype, torch.float32))
    if wide.dim() == 3:
        return wide
    if channels == "sum":
        return wide.sum(1)
    return wide.abs().amax(1) if channels == "max_abs" else wide.abs().sum(1)


def pixel_maps(maps: object, images: Tensor, channels: Channels = "max_abs", argument: str = "maps") -> Tensor:
    """``maps`` with one number for each pixel of the ``images`` [N, C, H, W]: [N, H, W], on their device.

    Coarser maps are resized (bilinear, ``align_corners=False``), as torch-cam and pytorch-grad-cam do.
    """
    return resized(own_maps(maps, len(images), channels, argument).to(images.device), images)


def resized(maps: Tensor, images: Tensor) -> Tensor:
    """``maps`` [N, h, w] at the height and width of the ``images``."""
    size = (images.shape[2], images.shape[3])
    if maps.shape[1:] == size or not len(maps):
        return maps.reshape(len(maps), *size)
    return functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def scaled(maps: Tensor) -> Tensor:
    """``maps`` [N, h, w], each scaled from 0 (its smallest value) to 1 (its largest); a constant map becomes 0."""
    low, high = (each[:, None, None] for each in (maps.flatten(1).amin(1), maps.flatten(1).amax(1)))
    return (maps - low) / torch.where(high > low, high - low, 1)


def rank(values: Tensor, ties: Ties = "first") -> Tensor:
    """The rank of each value in its row, 0 for the highest: int64 [N, P] for ``values`` [N, P].

    >>> rank(torch.tensor([[0.5, 2.0, 0.5]])).tolist(), rank(torch.tensor([[0.5, 2.0, 0.5]]), "last").tolist()
    ([[1, 0, 2]], [[2, 0, 1]])
    """
    checks.one_of(ties, "ties", ("first", "last"))
    if ties == "last":
        return rank(values.flip(1)).flip(1)
    order = values.argsort(dim=1, descending=True, stable=True)
    places = torch.empty_like(order)
    return places.scatter_(1, order, torch.arange(values.shape[1], device=values.device).expand_as(order))


def labels_of(regions: Regions, images: Tensor) -> Tensor | None:
    """The number of each pixel's region, starting from 0, int64 [1 or N, H, W]; None for single pixels.

    Raises:
        TypeError: not whole numbers.
        ValueError: another shape, a window below 1 pixel, a negative segment.
    """
    if regions is None:
        return None
    H, W = images.shape[2:]
    if isinstance(regions, Tensor):
        labels = label_maps(regions, "regions", images).to(images.device)
        if labels.numel() and int(labels.min()) < 0:
            raise ValueError(f"regions should be numbered from 0, got {int(labels.min())}")
        return labels
    sides = regions if isinstance(regions, tuple) else (regions, regions)
    if len(sides) != 2:
        raise ValueError(f"regions should be one number or (height, width), got {len(sides)} numbers")
    height, width = (checks.whole_number(side, "regions", minimum=1) for side in sides)
    rows, columns = (torch.arange(size, device=images.device) for size in (H, W))
    return (rows[:, None] // height * -(-W // width) + columns // width)[None]


def region_means(maps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of ``maps`` [N, H, W] in each region, float64 [N, R], and its number of pixels, [N, R].

    A region that an image lacks has no pixels and a mean of −∞, so it comes last in every order.
    """
    R = int(labels.max()) + 1 if labels.numel() else 0
    index = labels.expand(maps.shape).flatten(1)
    total = maps.new_zeros(len(maps), R, dtype=torch.float64).scatter_add_(1, index, maps.flatten(1).double())
    count = torch.zeros_like(total).scatter_add_(1, index, torch.ones_like(maps.flatten(1), dtype=torch.float64))
    return torch.where(count > 0, total / count.clamp(min=1), -torch.inf), count
