"""Random changes of the image before each look of the network: what survives them is no accident of single pixels.

Each image draws from a random generator of its own, so it does not matter which others are beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastviz import checks

__all__ = ["Jitter", "Rotate", "Scale", "Transform"]


class Transform:
    """A random change of images [n, C, H, W] that keeps their size, in their graph."""

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The changed images; image i takes its random numbers from ``generators[i]``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Jitter(Transform):
    """Shifts each image by up to ``pixels`` down or up and left or right; what leaves at one edge enters at the other.

    Mordvintsev, Olah, Tyka 2015, https://research.google/blog/inceptionism-going-deeper-into-neural-networks/
    """

    pixels: int = 8

    def __post_init__(self) -> None:
        checks.whole_number(self.pixels, "pixels", minimum=1)

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """See the class."""
        shifts = [torch.randint(-self.pixels, self.pixels + 1, (2,), generator=each).tolist() for each in generators]
        if all(shift == shifts[0] for shift in shifts):
            return images.roll(shifts[0], (2, 3))
        return torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(images, shifts, strict=True)])


@dataclass(frozen=True)
class Scale(Transform):
    """Enlarges each image around its centre by a factor between ``low`` and ``high``; what is missing is mirrored."""

    low: float = 0.9
    high: float = 1.1

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < torch.inf:
            raise ValueError(f"low and high should be above 0, in this order, got {self.low} and {self.high}")

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """See the class."""
        factors = _uniform(self.low, self.high, generators)
        zero = torch.zeros_like(factors)
        matrices = torch.stack([1 / factors, zero, zero, zero, 1 / factors, zero], 1)
        return _warped(images, matrices.view(-1, 2, 3))


@dataclass(frozen=True)
class Rotate(Transform):
    """Turns each image around its centre by up to ``degrees`` to either side; what is missing is mirrored."""

    degrees: float = 5.0

    def __post_init__(self) -> None:
        checks.positive(self.degrees, "degrees")

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """See the class."""
        angles = _uniform(-self.degrees, self.degrees, generators) * (math.pi / 180)
        # Coordinates run from -1 to 1 along each side: a turn must know which side is longer.
        ratio = images.shape[-2] / images.shape[-1]
        cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
        matrices = torch.stack([cosine, -sine * ratio, zero, sine / ratio, cosine, zero], 1)
        return _warped(images, matrices.view(-1, 2, 3))


def _uniform(low: float, high: float, generators: Sequence[torch.Generator]) -> Tensor:
    """One number an image, float64 [n]."""
    drawn = [torch.rand((), generator=generator, dtype=torch.float64) for generator in generators]
    return low + (high - low) * torch.stack(drawn)


def _warped(images: Tensor, matrices: Tensor) -> Tensor:
    """``images`` read at the coordinates that ``matrices`` [n, 2, 3] make of each pixel's."""
    grid = functional.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
