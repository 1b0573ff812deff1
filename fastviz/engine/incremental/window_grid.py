"""Windows in a grid over an image: where they stand, means over those that cover a pixel, what fills them."""

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

__all__ = ["Fill", "Grid", "filling", "grid"]

Fill = float | Tensor | Literal["mean", "blur"]
"""What covers a window: a number, a value for each channel [C], an image [C, H, W], one an image [N, C, H, W], the mean
of each channel of each image, or the image blurred."""

_BLURS = 0.5
"""Standard deviation of the blur, as a fraction of the window's side: what is smaller than the window is gone."""


@dataclass(frozen=True)
class Grid:
    """Windows of one size in rows and columns.

    Attributes:
        rows: where the windows of each row begin, in pixels; below 0 where they stick out at the top.
        columns: where those of each column begin.
        window: height and width, in pixels.
        size: height and width of the image.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    window: tuple[int, int]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return len(self.rows), len(self.columns)

    @cached_property
    def boxes(self) -> Tensor:
        """Int64 [rows · columns, 4]: top, left, bottom, right, half open; columns run fastest; the border cuts."""
        top, left = torch.meshgrid(torch.tensor(self.rows), torch.tensor(self.columns), indexing="ij")
        corners = torch.stack([top, left, top + self.window[0], left + self.window[1]], dim=-1).reshape(-1, 4)
        return torch.minimum(corners.clamp(min=0), torch.tensor([*self.size, *self.size]))

    def spread(self, values: Tensor) -> Tensor:
        """Mean of ``values`` [..., rows, columns] over the windows that cover each pixel: [..., H, W].

        The sum over the windows that cover a pixel is a sum over rows, then over columns: two products with matrices of
        zeros and ones, in float64.
        """
        down = _covers(self.rows, self.window[0], self.size[0]).to(values.device)
        across = _covers(self.columns, self.window[1], self.size[1]).to(values.device)
        total = down.T @ values.double() @ across
        return (total / torch.outer(down.sum(0), across.sum(0))).to(values.dtype)


def grid(size: tuple[int, int], window: object, stride: object, *, centred: bool = False) -> Grid:
    """The windows of an occlusion sweep.

    They begin at 0, stride, 2·stride, … until one reaches the border, which cuts it off if it sticks out: captum's
    windows. Or they are ``centred`` on the pixels 0, stride, 2·stride, …, and stick out at every border: a window on
    pixel p covers p − ⌊window / 2⌋ and what follows.

    Args:
        size: height and width of the image, in pixels.
        window: height and width in pixels; one number for a square; None is a seventh of the sides, at least 1.
        stride: step between windows in pixels, at most their size; None is half of the window, at least 1.
        centred: see above.

    Raises:
        TypeError, ValueError: a number out of range; the message names the argument.
    """
    sides = tuple(max(1, side // 7) for side in size) if window is None else _pair(window, "window")
    steps = tuple(max(1, side // 2) for side in sides) if stride is None else _pair(stride, "stride")
    starts = [
        _starts(size[axis], sides[axis], steps[axis], "HW"[axis], centred=centred) for axis in range(2)
    ]  # fmt: skip
    return Grid(starts[0], starts[1], (sides[0], sides[1]), size)


def _pair(value: object, argument: str) -> tuple[int, int]:
    """Height and width from one number or two, each at least 1."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2:
            raise ValueError(f"{argument} should be one number or (height, width), got {len(value)} numbers")
        first, second = value
    else:
        first = second = value
    return checks.whole_number(first, argument, minimum=1), checks.whole_number(second, argument, minimum=1)


def _starts(size: int, window: int, stride: int, side: str, *, centred: bool) -> tuple[int, ...]:
    """Where windows begin along a side."""
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


def filling(fill: object, images: Tensor, window: tuple[int, int]) -> float | Tensor:
    """``fill`` as ``ops.occlude`` takes it for the ``images`` [N, C, H, W]: a number, [C] or [1 or N, C, H, W].

    ``"mean"``: each image's own mean of each channel. ``"blur"``: each image under a Gaussian whose standard deviation
    is half of the window's sides, its border repeated outwards.

    Raises:
        TypeError: neither a number, a tensor nor a word.
        ValueError: another word; a tensor of another shape or on another device.
    """
    if isinstance(fill, str):
        checks.one_of(fill, "fill", ("mean", "blur"))
        if fill == "mean":
            return images.mean((2, 3), keepdim=True).expand(images.shape).contiguous()
        return tensors.gaussian_blur(images, (_BLURS * window[0], _BLURS * window[1]))
    if not isinstance(fill, Tensor):
        if isinstance(fill, bool) or not isinstance(fill, (int, float)):
            raise TypeError(f'fill should be a number, a tensor, "mean" or "blur", got {type(fill).__name__}')
        return float(fill)
    N, C, H, W = images.shape
    if fill.shape not in ((), (C,), (C, H, W), (N, C, H, W)):
        raise ValueError(
            f"fill should have shape [{C}], [{C}, {H}, {W}] or [{N}, {C}, {H}, {W}] for this x, got {list(fill.shape)}"
        )
    if fill.dim() and fill.device != images.device:
        raise ValueError(f"fill should be on the device of x, {images.device}, got {fill.device}")
    if not fill.dim():
        return float(fill)
    fill = fill.detach().to(images.dtype)
    return fill[None] if fill.dim() == 3 else fill


def _blurred(images: Tensor, window: tuple[int, int]) -> Tensor:
    """Images [N, C, H, W] under a Gaussian as wide as half of the window."""
    exact = images if images.dtype == torch.float64 else images.float()
    return tensors.gaussian_blur(exact, (_BLURS * window[0], _BLURS * window[1])).to(images.dtype)
