"""A grid of windows over an image: positions, means over the windows that cover a pixel, and fills.

Images have two axes, rows and columns; signals have one and volumes three, depth first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.images import tensors

__all__ = ["Fill", "Grid", "filled_images", "filling", "grid"]

Fill = float | Tensor | Literal["mean", "blur"]
"""The replacement for a window: a number, a value for each channel [C], an image [C, H, W], one per image [N, C, H, W],
the mean of each channel of each image, or the blurred image."""

_BLURS = 0.5
"""Standard deviation of the blur, as a fraction of the window's side, so that details smaller than it disappear."""


@dataclass(frozen=True)
class Grid:
    """Windows of one size in rows and columns.

    Attributes:
        starts: along each axis, where windows start, in pixels; below 0 if they extend beyond the border.
        window: height and width, in pixels.
        size: height and width of the image, or of its region that the windows cover.
        origin: where that region starts in the image; () is the top left.
    """

    starts: tuple[tuple[int, ...], ...]
    window: tuple[int, ...]
    size: tuple[int, ...]
    origin: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows and of columns."""
        return tuple(len(starts) for starts in self.starts)

    @cached_property
    def boxes(self) -> Tensor:
        """Int64 [rows · columns, 4]: top, left, bottom, right, half-open, in row-major order, cropped at the border."""
        corner = torch.stack(torch.meshgrid(*map(torch.tensor, self.starts), indexing="ij"), dim=-1).flatten(0, -2)
        boxes = torch.cat([corner, corner + torch.tensor(self.window)], dim=1)
        inside = torch.minimum(boxes.clamp(min=0), torch.tensor([*self.size, *self.size]))
        return inside + torch.tensor([*self.origin, *self.origin]) if self.origin else inside

    def spread(self, values: Tensor) -> Tensor:
        """Mean of ``values`` [..., rows, columns] over the windows that cover each pixel: [..., H, W].

        The sum over the windows that cover a pixel is a sum over rows, then over columns: products with matrices of
        zeros and ones, in float64.
        """
        axes = len(self.size)
        total, count = values.double(), torch.ones((), dtype=torch.float64, device=values.device)
        for axis, (starts, window, size) in enumerate(zip(self.starts, self.window, self.size, strict=True)):
            covers = _covers(starts, window, size).to(values.device)
            total = (total.movedim(axis - axes, -1) @ covers).movedim(-1, axis - axes)
            count = count[..., None] * covers.sum(0)
        return (total / count).to(values.dtype)


def grid(
    size: tuple[int, ...], window: object, stride: object, *, centred: bool = False, region: object = None
) -> Grid:
    """The windows of an occlusion sweep.

    They start at 0, stride, 2·stride, … until one reaches the border, where it is cropped: captum's windows. Or they
    are ``centred`` on the pixels 0, stride, 2·stride, …, and extend beyond every border: a window on pixel p starts at
    p − ⌊window / 2⌋.

    Args:
        size: height and width of the image, in pixels; length of a signal; depth, height and width of a volume.
        window: its size; one number for all axes; None is a seventh of the sides, at least 1.
        stride: step between windows in pixels, at most their size; None is half of the window, at least 1.
        centred: see above.
        region: the part of the image that is treated as the whole: top, left, bottom, right, half-open; None is all.

    Raises:
        TypeError, ValueError: a number out of range; the message names the argument.
    """
    axes = len(size)
    origin, size = ((), size) if region is None else _region(region, size)
    sides = tuple(max(1, side // 7) for side in size) if window is None else _each(window, "window", axes)
    steps = tuple(max(1, side // 2) for side in sides) if stride is None else _each(stride, "stride", axes)
    of_axes = zip(size, sides, steps, _SIDES[axes], strict=True)
    starts = tuple(_starts(*of_axis, centred=centred) for of_axis in of_axes)
    return Grid(starts, sides, size, origin)


def _region(region: object, size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where a part of the image starts, and its size."""
    axes = len(size)
    if not isinstance(region, Sequence) or isinstance(region, str) or len(region) != 2 * axes:
        raise ValueError(f"region should be {_CORNERS[axes]} in pixels, got {region!r}")
    numbers = [checks.whole_number(each, "region", minimum=0) for each in region]
    starts, stops = tuple(numbers[:axes]), tuple(numbers[axes:])
    if not all(start < stop <= side for start, stop, side in zip(starts, stops, size, strict=True)):
        shape = "x".join(map(str, size))
        raise ValueError(f"region should lie in the image of {shape} pixels and hold some of it, got {tuple(numbers)}")
    return starts, tuple(stop - start for start, stop in zip(starts, stops, strict=True))


_CORNERS = {1: "(start, stop)", 2: "(top, left, bottom, right)", 3: "(front, top, left, back, bottom, right)"}
_SIDES = {1: "L", 2: "HW", 3: "DHW"}
_SIDES_IN_WORDS = {1: "(length,)", 2: "(height, width)", 3: "(depth, height, width)"}


def _each(value: object, argument: str, axes: int) -> tuple[int, ...]:
    """A number for each axis, at least 1, from as many or from one for all."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (checks.whole_number(value, argument, minimum=1),) * axes
    if len(value) != axes:
        raise ValueError(f"{argument} should be one number or {_SIDES_IN_WORDS[axes]}, got {len(value)} numbers")
    return tuple(checks.whole_number(each, argument, minimum=1) for each in value)


def _starts(size: int, window: int, stride: int, side: str, *, centred: bool) -> tuple[int, ...]:
    """Where windows start along a side."""
    if window > size:
        raise ValueError(f"window should be at most the image, {side} = {size} pixels, got {window}")
    if stride > window and (centred or window < size):
        raise ValueError(f"stride should be at most the window, {window} pixels along {side}, got {stride}")
    if centred:
        return tuple(centre - window // 2 for centre in range(0, size, stride))
    return tuple(index * stride for index in range(math.ceil((size - window) / stride) + 1))


def _covers(starts: Sequence[int], window: int, size: int) -> Tensor:
    """Which windows cover which positions along a side: float64 [windows, size] of zeros and ones."""
    start, position = torch.tensor(starts)[:, None], torch.arange(size)
    return ((start <= position) & (position < start + window)).double()


def filling(fill: object, images: Tensor, window: tuple[int, ...], argument: str = "fill") -> float | Tensor:
    """``fill`` in a form for ``ops.occlude`` on the ``images`` [N, C, H, W]: a number, [C] or [1 or N, C, H, W].

    ``"mean"``: the mean of each channel of each image. ``"blur"``: each image blurred by a Gaussian whose standard
    deviation is half of the window's sides, with the border replicated.

    Raises:
        TypeError: neither a number, a tensor nor a string.
        ValueError: an unknown word; a tensor with a wrong shape or device.
    """
    if isinstance(fill, str):
        checks.one_of(fill, argument, ("mean", "blur"))
        if fill == "mean":
            return images.mean(tuple(range(2, images.dim())), keepdim=True).expand(images.shape).contiguous()
        return tensors.gaussian_blur(images, tuple(_BLURS * side for side in window))
    if not isinstance(fill, Tensor):
        if isinstance(fill, bool) or not isinstance(fill, (int, float)):
            raise TypeError(f'{argument} should be a number, a tensor, "mean" or "blur", got {type(fill).__name__}')
        return float(fill)
    N, C, *size = images.shape
    if fill.shape not in ((), (C,), (C, *size), (N, C, *size)):
        allowed = f"[{C}], {[C, *size]} or {[N, C, *size]}"
        raise ValueError(f"{argument} should have shape {allowed} for this x, got {list(fill.shape)}")
    if fill.dim() and fill.device != images.device:
        raise ValueError(f"{argument} should be on the device of x, {images.device}, got {fill.device}")
    if not fill.dim():
        return float(fill)
    fill = fill.detach().to(images.dtype)
    return fill[None] if fill.dim() == images.dim() - 1 else fill


def filled_images(fill: object, images: Tensor, window: tuple[int, ...], argument: str = "fill") -> Tensor:
    """``fill`` as images [N, C, H, W], without a graph; arguments and errors as in :func:`filling`."""
    found = filling(fill, images, window, argument)
    if isinstance(found, Tensor) and found.dim() == 1:
        found = found[:, None, None]
    return (torch.zeros_like(images) + found).detach()
