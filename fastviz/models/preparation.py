"""How a picture becomes the input of a network: sizes, crop, mean and standard deviation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from fastviz._util import checks

__all__ = ["IMAGENET", "Preprocessing", "for_channels"]


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network's input: resize, crop the centre, subtract ``mean``, divide by ``std``.

    Attributes:
        size: height and width of the input in pixels; None keeps what the resizing gives.
        resize: length in pixels of the picture's shorter side before the crop, its shape kept; None resizes the whole
            picture to ``size`` without a crop, changing its shape.
        mean: one number per channel, in units of a picture with values 0 to 1. One number alone makes the input grey.
        std: as ``mean``.
        interpolation: ``"bilinear"`` or ``"bicubic"``, both with antialiasing.

    Raises:
        ValueError: a size below 1, a crop larger than what ``resize`` leaves, ``mean`` and ``std`` of different
            lengths, a ``std`` of 0 or less.

    >>> Preprocessing(size=(224, 224), resize=256, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).size
    (224, 224)
    """

    size: tuple[int, int] | None
    resize: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if self.size is not None:
            if not isinstance(self.size, (tuple, list)) or len(self.size) != 2:
                raise ValueError(f"size should be (height, width) or None, got {self.size!r}")
            height, width = (checks.whole_number(length, "size", minimum=1) for length in self.size)
            object.__setattr__(self, "size", (height, width))
        if self.resize is not None:
            checks.whole_number(self.resize, "resize", minimum=1)
            if self.size is not None and self.resize < max(self.size):
                raise ValueError(
                    f"resize should be at least the larger side of size, {max(self.size)}, got {self.resize}"
                )
        for argument in ("mean", "std"):
            object.__setattr__(self, argument, tuple(float(number) for number in getattr(self, argument)))
            if not all(math.isfinite(number) for number in getattr(self, argument)):
                raise ValueError(f"{argument} should be finite, got {getattr(self, argument)}")
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"mean and std should each have one number per channel, got {len(self.mean)} and {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std should be above 0, got {self.std}")
        checks.one_of(self.interpolation, "interpolation", ("bilinear", "bicubic"))


IMAGENET = Preprocessing((224, 224), 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What most networks trained on ImageNet take; the default where nothing is known."""

# The means over ImageNet's three colours, for images with another number of channels.
_GREY_MEAN, _GREY_STD = 0.449, 0.226


def for_channels(settings: Preprocessing, channels: int) -> Preprocessing:
    """``settings`` for another number of channels, each with the averages over those that it has.

    >>> for_channels(IMAGENET, 1).mean
    (0.449,)
    """
    if channels == len(settings.mean):
        return settings
    if settings.mean == IMAGENET.mean:
        mean, std = _GREY_MEAN, _GREY_STD
    else:
        mean, std = (sum(numbers) / len(numbers) for numbers in (settings.mean, settings.std))
    return replace(settings, mean=(mean,) * channels, std=(std,) * channels)
