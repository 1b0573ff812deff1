"""Random image transforms that are applied before each pass: functions from images [N, C, H, W] to images.

They draw the same numbers from NumPy's generator as lucent's, one for all images of a batch, and give the same images
up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch  # noqa: F401 - the examples use it
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Transform",
    "compose",
    "jitter",
    "normalize",
    "pad",
    "preprocess_inceptionv1",
    "random_rotate",
    "random_scale",
    "standard_transforms",
]

Transform: TypeAlias = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] → images, possibly with another size."""


def jitter(d: int) -> Transform:
    """Moves images right and down by 0 to ``d`` − 1 pixels each; new pixels are 0.

    >>> jitter(2)(torch.ones(1, 3, 4, 4)).shape
    torch.Size([1, 3, 4, 4])
    """
    assert d > 1, f"Jitter parameter d must be more than 1, currently {d}"

    def inner(image_t: Tensor) -> Tensor:
        right, down = int(np.random.choice(d)), int(np.random.choice(d))
        return functional.pad(image_t, [right, -right, down, -down])

    return inner


def pad(w: int, mode: str = "reflect", constant_value: float = 0.5) -> Transform:
    """Adds ``w`` pixels at each side, with the value ``constant_value`` in mode ``"constant"``; see torch's ``pad``.

    >>> pad(2)(torch.ones(1, 3, 4, 4)).shape
    torch.Size([1, 3, 8, 8])
    """
    value = constant_value if mode == "constant" else 0

    def inner(image_t: Tensor) -> Tensor:
        return functional.pad(image_t, [w] * 4, mode=mode, value=value)

    return inner


def random_scale(scales: Sequence[float]) -> Transform:
    """Resizes images (bilinear, with aligned corners) by one of ``scales``; smaller ones are padded with 0.

    >>> random_scale([1.5])(torch.ones(1, 3, 4, 4)).shape
    torch.Size([1, 3, 6, 6])
    """

    def inner(image_t: Tensor) -> Tensor:
        scale = float(np.random.choice(scales))
        height, width = image_t.shape[2:]
        size = [math.ceil(scale * side) for side in (height, width)]
        across, down = (max(0, math.ceil((side - new) / 2)) for side, new in ((width, size[1]), (height, size[0])))
        scaled = functional.interpolate(image_t, size, mode="bilinear", align_corners=True)
        # lucent pads left and top by the rows' padding, and right and bottom by the columns'.
        return functional.pad(scaled, [down, across] * 2) if down or across else scaled

    return inner


def random_rotate(angles: Sequence[float], units: str = "degrees") -> Transform:
    """Rotates images counter-clockwise around their centre by one of ``angles`` (bilinear); new pixels are 0.

    ``units`` is ``"degrees"``, or ``"radians"``, ``"rads"``, ``"rad"``.

    >>> random_rotate([90])(torch.eye(3)[None, None])[0, 0].round().abs()
    tensor([[0., 0., 1.],
            [0., 1., 0.],
            [1., 0., 0.]])
    """

    def inner(image_t: Tensor) -> Tensor:
        angle = float(np.random.choice(angles))
        if units.lower() not in ("radians", "rads", "rad"):
            angle = math.radians(angle)
        if not angle:
            return image_t
        height, width = image_t.shape[2:]
        # Coordinates run from -1 to 1 along each side, so the rotation needs the aspect ratio.
        ratio = (height - 1) / max(1, width - 1)
        cosine, sine = math.cos(angle), math.sin(angle)
        matrix = image_t.new_tensor([[cosine, -sine * ratio, 0], [sine / ratio if ratio else 0, cosine, 0]])
        # All images are rotated as channels of one image, with one grid.
        flat = image_t.reshape(1, -1, height, width)
        grid = functional.affine_grid(matrix[None], list(flat.shape), align_corners=True)
        turned = functional.grid_sample(flat, grid, align_corners=True)
        return turned.view_as(image_t)

    return inner


def compose(transforms: Sequence[Transform]) -> Transform:
    """The transforms, applied one after the other.

    >>> compose([pad(1), pad(1)])(torch.ones(1, 3, 4, 4)).shape
    torch.Size([1, 3, 8, 8])
    """

    def inner(x: Tensor) -> Tensor:
        for transform in transforms:
            x = transform(x)
        return x

    return inner


def normalize() -> Transform:
    """Normalises pictures in 0 to 1 for torchvision's networks: (picture − mean) / standard deviation of ImageNet.

    >>> normalize()(torch.full((1, 3, 1, 1), 0.485))[0, 0]
    tensor([[0.]])
    """
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def inner(image_t: Tensor) -> Tensor:
        columns = (image_t.new_tensor(numbers)[:, None, None] for numbers in (mean, deviation))
        return (image_t - next(columns)) / next(columns)

    return inner


def preprocess_inceptionv1() -> Callable[[Any], Any]:
    """Scales pictures in 0 to 1 for InceptionV1: −117 to 138.

    >>> preprocess_inceptionv1()(1.0)
    138.0
    """
    return lambda x: x * 255 - 117


standard_transforms: list[Transform] = [
    pad(12, mode="constant", constant_value=0.5),
    jitter(8),
    random_scale([1 + (i - 5) / 50.0 for i in range(11)]),
    random_rotate([*range(-10, 11), *[0] * 5]),
    jitter(4),
]
"""The default transforms of :func:`fastviz.compat.lucent.render_vis`."""
