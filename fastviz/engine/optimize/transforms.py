"""Random transforms of the images before each pass, so that the result does not depend on single pixels.

Each image has its own random generator, so its transforms do not depend on the other images of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastviz._util import checks

__all__ = ["Jitter", "Rotate", "Scale", "Transform", "Warp", "transformed"]


class Transform:
    """A differentiable random transform of images [n, C, H, W] that keeps their size."""

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The transformed images; image i takes its random numbers from ``generators[i]``."""
        raise NotImplementedError


class Warp(Transform):
    """A linear map of the plane: a matrix maps each pixel to the position at which the image is sampled, bilinearly."""

    def matrices(self, size: tuple[int, int], generators: Sequence[torch.Generator]) -> Tensor:
        """Float64 [n, 2, 2], for positions (x, y), −1 to 1 from edge to edge of images of ``size``."""
        raise NotImplementedError

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """See the class."""
        return _warped(images, self.matrices((images.shape[2], images.shape[3]), generators))


def transformed(images: Tensor, transforms: Sequence[Transform], generators: Sequence[torch.Generator]) -> Tensor:
    """``images`` after all ``transforms``, in order; consecutive warps are combined, so that they interpolate once.

    >>> transformed(torch.ones(1, 3, 4, 4), [Scale(0.5, 2.0), Rotate()], [torch.Generator()]).shape
    torch.Size([1, 3, 4, 4])
    """
    pending: Tensor | None = None
    for transform in transforms:
        if isinstance(transform, Warp):
            # The second warp samples the first one's result at M₂p, which is M₁M₂p in the image.
            found = transform.matrices((images.shape[2], images.shape[3]), generators)
            pending = found if pending is None else pending @ found
            continue
        images, pending = images if pending is None else _warped(images, pending), None
        images = transform(images, generators)
    return images if pending is None else _warped(images, pending)


@dataclass(frozen=True)
class Jitter(Transform):
    """Shifts each image by up to ``pixels`` vertically and horizontally, wrapping around at the edges.

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
class Scale(Warp):
    """Scales each image around its centre by a factor between ``low`` and ``high``; missing pixels are mirrored."""

    low: float = 0.9
    high: float = 1.1

    def __post_init__(self) -> None:
        checks.positive(self.low, "low")
        checks.positive(self.high, "high")
        if not self.low <= self.high:
            raise ValueError(f"low and high should be above 0, in this order, got {self.low} and {self.high}")

    def matrices(self, size: tuple[int, int], generators: Sequence[torch.Generator]) -> Tensor:
        """See the class."""
        return torch.eye(2, dtype=torch.float64) / _uniform(self.low, self.high, generators)[:, None, None]


@dataclass(frozen=True)
class Rotate(Warp):
    """Rotates each image around its centre by up to ``degrees`` in either direction; missing pixels are mirrored."""

    degrees: float = 5.0

    def __post_init__(self) -> None:
        checks.positive(self.degrees, "degrees")

    def matrices(self, size: tuple[int, int], generators: Sequence[torch.Generator]) -> Tensor:
        """See the class."""
        angles = _uniform(-self.degrees, self.degrees, generators) * (math.pi / 180)
        # Coordinates run from -1 to 1 along each side, so a rotation must account for the aspect ratio.
        ratio = size[0] / size[1]
        cosine, sine = angles.cos(), angles.sin()
        return torch.stack([cosine, -sine * ratio, sine / ratio, cosine], 1).view(-1, 2, 2)


def _uniform(low: float, high: float, generators: Sequence[torch.Generator]) -> Tensor:
    """One random number per image, float64 [n]."""
    drawn = [torch.rand((), generator=generator, dtype=torch.float64) for generator in generators]
    return low + (high - low) * torch.stack(drawn)


def _to_device_of(values: Tensor, like: Tensor) -> Tensor:
    """``values`` from the host in the dtype and on the device of ``like``, without waiting for the device."""
    values = values.to(like.dtype)
    return values.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else values


def _warped(images: Tensor, matrices: Tensor) -> Tensor:
    """``images`` sampled at the positions given by ``matrices`` [n, 2, 2]; beyond the edges they are mirrored."""
    whole = torch.cat([matrices, matrices.new_zeros(len(matrices), 2, 1)], 2)
    grid = functional.affine_grid(_to_device_of(whole, images), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
