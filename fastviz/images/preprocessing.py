"""From a picture to a network's input, with the same numbers as torchvision, and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastviz import models
from fastviz._util import checks
from fastviz.images import tensors
from fastviz.images.pillow import LIMIT_PIXELS, decoded, is_plain, plain, without_opaque_alpha
from fastviz.models.descriptions import Preprocessing

__all__ = ["prepare", "preprocess", "restore", "settings_for"]

_ROWS = 256
"""Rows of a large picture that are checked at once; the first with more than 8 bits decides."""

_METHODS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """A Pillow picture as a network's input [C, h, w], as :func:`preprocess` makes it of the picture's pixels.

    Args:
        image: any mode.
        preprocessing: for example ``fastviz.models.preprocessing(model)``.

    Returns:
        float32 on the CPU, C numbers of ``preprocessing.mean``.

    Raises:
        ValueError: as :func:`preprocess`; pixels that :func:`read_image` refuses (an :class:`ImageError`).

    >>> prepare(Image.new("RGB", (6, 4)), Preprocessing((2, 2), 2, (0.5,) * 3, (0.25,) * 3)).unique()
    tensor([-2.])
    """
    image = without_opaque_alpha(image)
    if len(preprocessing.mean) != 3 or not is_plain(image):
        return preprocess(decoded(image).expand(3, -1, -1), preprocessing)
    if not image.width * image.height:
        raise ValueError(f"image should have at least one pixel, got {image.height}x{image.width}")
    size = _resized_size(image.height, image.width, preprocessing)
    kept = _resize_picture(plain(image), size, _crop(size, preprocessing), preprocessing.interpolation)
    return _normalized_pixels(kept, preprocessing)


def settings_for(model: nn.Module | None, size: int | tuple[int, int] | None = None) -> Preprocessing:
    """The preprocessing that :func:`load_images` uses for ``model``.

    Args:
        model: None is no normalization: values 0 to 1.
        size: height and width in pixels instead of the model's, or one number for both.

    Returns:
        The model's preprocessing, with that size.

    Raises:
        TypeError, ValueError: a ``size`` that is not whole numbers from 1 on.

    >>> settings_for(None, 64).size
    (64, 64)
    """
    settings = Preprocessing((224, 224), 256, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    if model is not None:
        settings = models.preprocessing(model)
    return settings if size is None else _with_size(settings, (size, size) if isinstance(size, int) else size)


def _with_size(settings: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    """``settings`` for another size of the input, the shorter side resized to more pixels where the crop needs it."""
    if settings.resize is None:
        return replace(settings, size=size)
    whole = replace(settings, size=size, resize=None)  # checks the size before it is computed with
    return replace(whole, resize=max(settings.resize, *(whole.size or ())))


def preprocess(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """``image`` resized, cropped and normalized for a network.

    The same numbers as torchvision's ``ImageClassification`` transform of a Pillow image: the longer side and the
    crop's offset are rounded as there, and a picture of 8 bits (all values multiples of 1/255) is resized by Pillow, to
    8 bits. Others (16 bits, blended transparency) are resized with the same antialiased weights without rounding. Of a
    picture so narrow that it would have more than :data:`LIMIT_PIXELS` pixels once resized, only the crop is computed;
    its values may then differ in the last of the 8 bits, as the place of the crop is rounded to float32.

    Args:
        image: [3, H, W] or [N, 3, H, W] with values 0 to 1.
        preprocessing: for example ``fastviz.models.preprocessing(model)``. With one number in ``mean`` the picture
            becomes grey, 0.299 red + 0.587 green + 0.114 blue, with one channel.

    Returns:
        [C, h, w] or [N, C, h, w] in the dtype and on the device of ``image``; C is 3, or 1 for a grey network.

    Raises:
        TypeError: ``image`` is not a floating-point tensor.
        ValueError: another shape, no pixels, values outside 0 to 1, gradients wanted (8 bits have none), or without a
            crop so narrow that the resized picture would have more than :data:`LIMIT_PIXELS` pixels.

    >>> settings = Preprocessing((2, 2), 2, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    >>> preprocess(torch.ones(3, 4, 6), settings).shape
    torch.Size([3, 2, 2])
    """
    checks.tensor(image, "image", dims=(3, 4), layout="[3, H, W] or [N, 3, H, W]")
    tensors.check_range(image, "image")
    if image.requires_grad and torch.is_grad_enabled():
        raise ValueError("image should not require gradients, which 8-bit pixels have not: detach it")
    x = image if image.dim() == 4 else image[None]
    if len(preprocessing.mean) == 1 and x.shape[1] == 3:
        x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    if len(preprocessing.mean) != x.shape[1]:
        raise ValueError(f"image should have {len(preprocessing.mean)} channels as the model has, got {x.shape[1]}")
    size = _resized_size(x.shape[-2], x.shape[-1], preprocessing)
    different = x[:, :1] if x.stride(1) == 0 else x  # a grey picture in three channels is resized once
    x = _resize_as_pillow(different, size, _crop(size, preprocessing), preprocessing.interpolation)
    x = _normalize(x.expand(-1, len(preprocessing.mean), -1, -1), preprocessing)
    return x if image.dim() == 4 else x[0]


def _resized_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width of a picture once it is resized, before the crop."""
    if preprocessing.resize is None:
        return preprocessing.size or (height, width)
    side = min(height, width)
    size = height * preprocessing.resize // side, width * preprocessing.resize // side
    if preprocessing.size is None and size[0] * size[1] > LIMIT_PIXELS:
        raise ValueError(
            f"image of {height}x{width} pixels is too narrow: a shorter side of {preprocessing.resize} would make it "
            f"{size[0]}x{size[1]}"
        )
    return size


def _crop(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what is kept of a resized picture."""
    height, width = preprocessing.size or size
    top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
    return top, left, top + height, left + width


def _normalized_pixels(picture: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """The same as :func:`_normalize` of a plain picture's pixels, by NumPy, which has no threads of its own.

    Each of several threads that read pictures would start as many threads of torch for these few numbers.
    """
    pixels = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels /= 255
    mean, std = (np.array(each, dtype=np.float32)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
    made = pixels - mean
    made /= std
    return torch.from_numpy(made)


def _normalize(x: Tensor, preprocessing: Preprocessing) -> Tensor:
    return (x - _channels(preprocessing.mean, x)) / _channels(preprocessing.std, x)


def _resize_as_pillow(x: Tensor, size: tuple[int, int], crop: tuple[int, int, int, int], mode: str) -> Tensor:
    """The ``crop`` of pictures [N, C, H, W] resized to ``size``; of 8 bits as torchvision has it from Pillow."""
    top, left, bottom, right = crop
    if size == tuple(x.shape[-2:]):
        return x[..., top:bottom, left:right]
    eight_bits = all(_has_eight_bits(row) for picture in x.detach() for plane in picture for row in plane.split(_ROWS))
    if not eight_bits and size[0] * size[1] <= LIMIT_PIXELS:
        return tensors.resize(x, *size, mode)[..., top:bottom, left:right]
    levels = (x.detach() * 255).round().to(torch.uint8) if eight_bits else x.detach().float()
    pixels = levels.cpu()
    resized = [_resize_picture(Image.fromarray(plane), size, crop, mode) for plane in pixels.flatten(0, 1).numpy()]
    kept = torch.from_numpy(np.stack([np.asarray(plane) for plane in resized]))
    return (kept.to(x) / 255 if eight_bits else kept.to(x).clamp(0, 1)).view(*x.shape[:2], *kept.shape[1:])


def _has_eight_bits(x: Tensor) -> bool:
    """Whether all values are multiples of 1/255."""
    return torch.allclose((x * 255).round() / 255, x, rtol=0, atol=1e-6)


def _resize_picture(
    image: Image.Image, size: tuple[int, int], crop: tuple[int, int, int, int], mode: str
) -> Image.Image:
    """The ``crop`` (top, left, bottom, right) of a Pillow picture resized to ``size`` (height, width)."""
    (height, width), (top, left, bottom, right) = size, crop
    if height * width > LIMIT_PIXELS and size != (image.height, image.width):
        # Pillow can compute a part of the resized picture; its filter reaches beyond the box as in the whole picture.
        down, across = image.height / height, image.width / width
        box = (left * across, top * down, right * across, bottom * down)
        return image.resize((right - left, bottom - top), _METHODS[mode], box=box)
    if size != (image.height, image.width):
        image = image.resize((width, height), _METHODS[mode])
    return image.crop((left, top, right, bottom))


def restore(x: Tensor, preprocessing: Preprocessing | nn.Module) -> Tensor:
    """The picture a network's input shows, in 0 to 1: ``x * std + mean``, clipped; the size stays.

    Args:
        x: [C, H, W] or [N, C, H, W], as :func:`preprocess` returns it.
        preprocessing: what ``x`` was made with, or the model that it was made for. A grey input gives three equal
            channels.

    Returns:
        [3, H, W] or [N, 3, H, W], 0 to 1, in the dtype and on the device of ``x``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor, or ``preprocessing`` neither of the two.
        ValueError: another shape, or another number of channels than the preprocessing has.

    >>> restore(torch.zeros(1, 2, 2), Preprocessing((2, 2), 2, (0.5,), (0.25,))).shape
    torch.Size([3, 2, 2])
    """
    checks.tensor(x, "x", dims=(3, 4), layout="[C, H, W] or [N, C, H, W]")
    if not isinstance(preprocessing, Preprocessing):
        preprocessing = models.preprocessing(checks.module(preprocessing, "preprocessing"))
    if x.shape[-3] != len(preprocessing.mean):
        raise ValueError(f"x should have {len(preprocessing.mean)} channels as the model has, got {x.shape[-3]}")
    picture = (x * _channels(preprocessing.std, x) + _channels(preprocessing.mean, x)).clamp(0, 1)
    return picture.expand(*x.shape[:-3], 3, *x.shape[-2:]) if x.shape[-3] == 1 else picture


def _channels(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    """One number per channel, to be added to or multiplied with pictures."""
    return like.new_tensor(numbers).view(-1, 1, 1)
