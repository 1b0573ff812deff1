"""Replacement values for the pixels that a measure removes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fastviz._util import checks
from fastviz.engine.incremental.window_grid import filling
from fastviz.evaluation._seeds import Seed, generator, seeds_of

__all__ = ["Substrate", "blurred", "substitute"]

Substrate = float | Tensor | Literal["mean", "blur", "uniform"]
"""The replacement for pixels: a number, a value for each channel [C], an image [C, H, W], or one per image [N, C, H,
W]; ``"mean"``: of each channel of each image; ``"blur"``: see :func:`blurred`; ``"uniform"``: uniform noise between the
smallest and the largest value of each channel of each image."""

_SIDE, _DEVIATION = 11, 5.0


def substitute(substrate: object, images: Tensor, seed: Seed, part: int = 0) -> Tensor:
    """``substrate`` as images [1 or N, C, H, W]; ``seed`` and ``part`` are used by ``"uniform"``.

    Raises:
        TypeError, ValueError: another type, word, shape or device.
    """
    if isinstance(substrate, str):
        checks.one_of(substrate, "substrate", ("mean", "blur", "uniform"))
        if substrate == "blur":
            return blurred(images)
        if substrate == "uniform":
            return _noise(images, seed, part)
    try:
        found = filling(substrate, images, (1, 1))
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("fill ", "substrate ", 1)) from None
    C, H, W = images.shape[1:]
    if isinstance(found, Tensor):
        return found if found.dim() == 4 else found.view(1, C, 1, 1).expand(1, C, H, W)
    return images.new_full((1, C, H, W), found)


def blurred(images: Tensor) -> Tensor:
    """The ``images`` [N, C, H, W] blurred as in RISE: 11x11 pixels, standard deviation 5, zero padding.

    Petsiuk, Das, Saenko 2018, https://arxiv.org/abs/1806.07421; their kernel is SciPy's Gaussian filter of a single
    point, whose tails are reflected into the 11 pixels.
    """
    radius = int(4 * _DEVIATION + 0.5)
    place = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (place / _DEVIATION) ** 2)
    weights = weights / weights.sum()
    line = torch.zeros(_SIDE, dtype=torch.float64)
    for at in range(_SIDE):
        source = (at + place.long()) % (2 * _SIDE)
        source = torch.where(source >= _SIDE, 2 * _SIDE - 1 - source, source)
        line[at] = weights[source == _SIDE // 2].sum()
    line = line.to(images.device, torch.promote_types(images.dtype, torch.float32))
    flat = images.to(line.dtype).reshape(-1, 1, *images.shape[2:])
    flat = functional.conv2d(flat, line.view(1, 1, -1, 1), padding=(_SIDE // 2, 0))
    flat = functional.conv2d(flat, line.view(1, 1, 1, -1), padding=(0, _SIDE // 2))
    return flat.reshape(images.shape).to(images.dtype)


def _noise(images: Tensor, seed: Seed, part: int) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    drawn = [
        torch.rand(images.shape[1:], generator=generator(each, part), dtype=torch.float64)
        for each in seeds_of(seed, len(images))
    ]
    noise = torch.stack(drawn).to(images) if drawn else images
    return low + (high - low) * noise
