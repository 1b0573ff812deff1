"""Pictures as tensors: resizing, scaling to 0 to 1, grids, blur. No files, no Pillow.

A picture is a float tensor [3, H, W] (red, green, blue) with values 0 to 1; several are [N, 3, H, W].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastviz._util import checks

__all__ = [
    "check_range",
    "eight_bits",
    "gaussian_blur",
    "grid",
    "normalize",
    "psnr",
    "resize",
    "resize_maps",
]


def normalize(maps: Tensor, *, symmetric: bool = False, percentile: float | None = None, dims: int = 2) -> Tensor:
    """``maps`` scaled to 0 to 1, each by itself.

    (maps - low) / (high - low), clipped, with low and high the smallest and largest value of each map; a constant map
    becomes 0. With ``symmetric`` high is the largest absolute value and low = -high: zero becomes 0.5, and a map of
    zeros 0.5 everywhere.

    Args:
        maps: [..., H, W], floating-point and finite.
        symmetric: for maps whose sign matters (with the colour map ``"seismic"``).
        percentile: above 50, at most 100: high is the smallest value that at least this many per cent of the map's
            values (``symmetric``: absolute values) do not exceed, low the largest value that as many are not below. One
            bright pixel then does not hide the rest.
        dims: how many of the last dimensions are scaled together: 2 for a map, 3 for a picture with its channels.

    Returns:
        The shape and dtype of ``maps``, on its device, 0 to 1.

    Raises:
        TypeError: ``maps`` is not a floating-point tensor.
        ValueError: values that are not finite, no values, a percentile outside its range.

    >>> normalize(torch.tensor([[1.0, 2.0], [3.0, 5.0]])).tolist()
    [[0.0, 0.25], [0.5, 1.0]]
    """
    checks.tensor(maps, "maps")
    checks.whole_number(dims, "dims", minimum=1)
    if percentile is not None and not 50 < percentile <= 100:
        raise ValueError(f"percentile should be above 50 and at most 100, got {percentile}")
    if maps.dim() < dims or not maps.numel():
        raise ValueError(f"maps should have at least {dims} dimensions and one value, got shape {list(maps.shape)}")
    if not maps.isfinite().all():
        raise ValueError("maps should be finite, got NaN or infinity")
    values = (maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps).flatten(-dims)
    rank = math.ceil((100 if percentile is None else percentile) / 100 * values.shape[-1])
    if symmetric:
        high = values.abs().kthvalue(rank, dim=-1, keepdim=True).values
        low = -high
    else:
        high = values.kthvalue(rank, dim=-1, keepdim=True).values
        low = -(-values).kthvalue(rank, dim=-1, keepdim=True).values
    # The numerator of a constant map is 0, and dividing it by its range would give NaN.
    scaled = (values - low) / torch.where(high > low, high - low, 1)
    if symmetric:
        scaled = torch.where(high > low, scaled, 0.5)
    return scaled.clamp(0, 1).view(maps.shape).to(maps.dtype)


def grid(pictures: Tensor, *, columns: int | None = None, padding: int = 2, background: float = 1.0) -> Tensor:
    """One picture of many, [3, rows · (H + padding) + padding, columns · (W + padding) + padding], row by row.

    Args:
        pictures: [N, 3, H, W]; of one channel grey, of four or more the first three.
        columns: pictures in a row; None is ⌈√N⌉.
        padding: pixels between the pictures and around them.
        background: brightness of the padding and of empty places, 0 to 1.

    Returns:
        [3, height, width] in the dtype and on the device of ``pictures``.

    Raises:
        TypeError: ``pictures`` is not a floating-point tensor, or a number is not whole.
        ValueError: another shape, no pictures, a number out of range.

    >>> grid(torch.zeros(3, 3, 4, 4), columns=2, padding=1).shape
    torch.Size([3, 11, 11])
    """
    pictures = coloured(checks.image_batch(pictures, "pictures"))
    checks.whole_number(padding, "padding", minimum=0)
    if not 0 <= background <= 1:
        raise ValueError(f"background should be 0 to 1, got {background}")
    N, channels, H, W = pictures.shape
    if N == 0:
        raise ValueError("pictures should hold at least one picture, got none")
    if columns is None:
        columns = math.isqrt(N - 1) + 1
    checks.whole_number(columns, "columns", minimum=1)
    rows = -(-N // columns)
    cells = pictures.new_full((rows * columns, channels, H + padding, W + padding), background)
    cells[:N, :, padding:, padding:] = pictures
    sheet = cells.view(rows, columns, channels, H + padding, W + padding).permute(2, 0, 3, 1, 4)
    sheet = sheet.reshape(channels, rows * (H + padding), columns * (W + padding))
    return F.pad(sheet, (0, padding, 0, padding), value=background)


def coloured(pictures: Tensor) -> Tensor:
    """Pictures [..., 3, H, W] of [..., C, H, W]: one channel is shown as grey, two as their mean in grey, and of four
    or more the first three.

    >>> coloured(torch.rand(2, 4, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """
    channels = pictures.shape[-3]
    if channels > 3:
        return pictures[..., :3, :, :]
    if channels == 3:
        return pictures
    shape = (*pictures.shape[:-3], 3, *pictures.shape[-2:])
    return pictures.mean(-3, keepdim=True).expand(shape).contiguous()


def resize(x: Tensor, height: int, width: int, mode: str, *, clip: bool = True) -> Tensor:
    """Pictures [N, C, height, width] from [N, C, H, W], antialiased; unchanged if they have that size already.

    Args:
        x: floating-point; in 0 to 1 unless ``clip`` is False.
        height, width: in pixels.
        mode: ``"bilinear"`` or ``"bicubic"``.
        clip: bring what was resized back to 0 to 1; False for differences of pictures.

    >>> resize(torch.ones(1, 3, 8, 8), 4, 6, "bicubic").shape
    torch.Size([1, 3, 4, 6])
    """
    if tuple(x.shape[2:]) == (height, width):
        return x
    # The antialiased filters have no 16-bit version on the CPU.
    exact = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    resized = F.interpolate(exact, (height, width), mode=mode, align_corners=False, antialias=True)
    return (resized.clamp(0, 1) if clip else resized).to(x.dtype)


def resize_maps(maps: Tensor, height: int, width: int) -> Tensor:
    """``maps`` [..., h, w] of any values at another size, bilinear without antialiasing; unchanged if they have it.

    >>> resize_maps(torch.tensor([[0.0, 1.0]]), 1, 4)
    tensor([[0.0000, 0.2500, 0.7500, 1.0000]])
    """
    if tuple(maps.shape[-2:]) == (height, width):
        return maps
    if not maps.numel():
        return maps.new_zeros((*maps.shape[:-2], height, width))
    planes = maps.reshape(-1, 1, *maps.shape[-2:])
    resized = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)
    return resized.reshape(*maps.shape[:-2], height, width)


def gaussian_blur(images: Tensor, sigma: float | tuple[float, ...]) -> Tensor:
    """``images`` [N, C, H, W] under a Gaussian, first down, then across; signals and volumes along each of their axes.

    The Gaussian is cut off at three standard deviations (rounded, at least one pixel). The border continues with the
    outermost pixels.

    Args:
        images: floating-point.
        sigma: standard deviation in pixels, above 0; or one for each axis, down and across.

    >>> gaussian_blur(torch.eye(3)[None, None], 1.0)[0, 0].argmax(1)
    tensor([0, 1, 2])
    """
    size = images.shape[2:]
    sigmas = sigma if isinstance(sigma, tuple) else (sigma,) * len(size)
    for axis, each in enumerate(sigmas):
        last = axis == len(size) - 1
        # pictures whose columns (of the last axis) or rows are the axis
        sides = (size[:axis][-1:].numel(), size[axis]) if last else (size[axis], size[axis + 1 :].numel())
        flat = images.reshape(-1, 1, *sides)
        radius = max(1, math.floor(3 * each + 0.5))
        place = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
        weights = torch.exp(-0.5 * (place / each).square())
        weights = (weights / weights.sum()).view((1, 1, 1, -1) if last else (1, 1, -1, 1))
        padding = (radius, radius, 0, 0) if last else (0, 0, radius, radius)
        images = F.conv2d(F.pad(flat, padding, mode="replicate"), weights).view(images.shape)
    return images


def eight_bits(picture: Tensor) -> Tensor:
    """Pictures of values 0 to 1 as uint8, rounded to the nearest of 256 levels; others are clipped."""
    return (picture.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def psnr(pictures: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each of the ``pictures`` [N, C, H, W] in dB, [N]: ``−10 log₁₀ mean (a − b)²``.

    Infinite where they are equal; both have values 0 to 1.

    >>> psnr(torch.full((1, 3, 2, 2), 0.75), torch.full((1, 3, 2, 2), 0.5))
    tensor([12.0412])
    """
    return -10 * (pictures - originals).square().flatten(1).mean(1).log10()


def check_range(x: Tensor, argument: str) -> None:
    """A ValueError if ``x`` has no values, or values outside 0 to 1 by more than rounding, or NaN."""
    if not x.numel():
        raise ValueError(f"{argument} should have at least one pixel, got shape {list(x.shape)}")
    low, high = (float(bound) for bound in x.detach().aminmax())
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise ValueError(f"{argument} should have values 0 to 1, got {low:.4g} to {high:.4g}")
