"""Pictures in and out: files to tensors, a network's preprocessing and back, colour maps, overlays, grids.

A picture is a float tensor [3, H, W] (red, green, blue) with values 0 to 1; several are [N, 3, H, W].
"""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor, nn

from fastviz import models
from fastviz._util import checks
from fastviz._util.files import whole_file
from fastviz.images import tensors
from fastviz.images.paths import ImageError, Paths, find_images, find_named
from fastviz.images.tensors import ColourMap, colour_map, grid, normalise, overlay
from fastviz.models.loading import Preprocessing

__all__ = [
    "LIMIT_PIXELS",
    "ColourMap",
    "ImageError",
    "colour_map",
    "find_images",
    "find_named",
    "grid",
    "is_picture",
    "load_images",
    "normalise",
    "overlay",
    "picture_of",
    "picture_path",
    "prepare",
    "preprocess",
    "read_image",
    "read_prepared",
    "read_views",
    "restore",
    "save_image",
    "settings_for",
]

Read = TypeVar("Read")

LIMIT_PIXELS = 100_000_000
"""The most pixels a picture may have unless a call says otherwise: beyond it lie mistakes and decompression bombs."""

# What is decoded: pixels only. Pillow's other formats include ones that start programs (EPS) or fetch what is missing.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP")

_METHODS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# ------------------------------------------------------------------------------------------------------- reading


def read_image(path: str | os.PathLike[str], *, limit_pixels: int = LIMIT_PIXELS) -> Tensor:
    """The picture in a file, [3, H, W] float32 in 0 to 1, turned as its EXIF orientation says.

    Greyscale becomes three equal channels. What is transparent is laid over white. CMYK is converted by
    (1 - ink)(1 - black), without colour profiles; in a JPEG file it is taken to be stored inverted, as Adobe does.
    Of an animation the first frame. 8-bit values are divided by 255, 16-bit grey by 65535; of 16-bit colour, and 16-bit
    grey with transparency, Pillow gives the high byte, which is off by less than 1/255. Floating-point pixels (TIFF)
    are taken as they are, if in 0 to 1.

    Args:
        path: a file in one of the formats AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PBM/PGM/PPM, QOI, TIFF, WebP,
            whatever it is called.
        limit_pixels: the most pixels; more are refused before anything is decoded. Pillow's own limit
            (``PIL.Image.MAX_IMAGE_PIXELS``) stays in force: it warns above 89 million and refuses above 179 million.

    Raises:
        ImageError: no such file, not a file, empty, broken, cut off, not an image, too many pixels. Names the file.
    """
    picture = _read(path, limit_pixels, _decoded)
    return picture.expand(3, -1, -1).contiguous()


def read_prepared(
    path: str | os.PathLike[str], preprocessing: Preprocessing, *, limit_pixels: int = LIMIT_PIXELS
) -> Tensor:
    """``preprocess(read_image(path), preprocessing)``, the same numbers in a third of the time for pictures of 8 bits.

    Raises:
        ImageError: as :func:`read_image`; also a picture that cannot be prepared.
    """
    return read_views(path, [preprocessing], limit_pixels=limit_pixels)[0]


def read_views(
    path: str | os.PathLike[str], views: Sequence[Preprocessing], *, limit_pixels: int = LIMIT_PIXELS
) -> list[Tensor]:
    """:func:`read_prepared` for each of the ``views``, from a file that is read and decoded once."""

    def prepared(image: Image.Image) -> list[Tensor]:
        try:
            return [prepare(image, view) for view in views]
        except ValueError as error:
            raise ImageError(str(error)) from error

    return _read(path, limit_pixels, prepared)


def is_picture(value: object) -> bool:
    """Whether ``value`` is a Pillow picture."""
    return isinstance(value, Image.Image)


def picture_of(pixels: Tensor) -> Image.Image:
    """A Pillow picture of a uint8 tensor, [3, H, W] in colour or [1, H, W] in grey."""
    array = pixels.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """A Pillow picture as a network's input [C, h, w], as :func:`preprocess` makes it of the picture's pixels.

    Raises:
        ValueError: as :func:`preprocess`; pixels that :func:`read_image` refuses (an :class:`ImageError`).
    """
    image = _opaque(image)
    if len(preprocessing.mean) != 3 or not _is_plain(image):
        return preprocess(_decoded(image).expand(3, -1, -1), preprocessing)
    if not image.width * image.height:
        raise ValueError(f"image should have at least one pixel, got {image.height}x{image.width}")
    size = _resized_size(image.height, image.width, preprocessing)
    kept = _resized_picture(_plain(image), size, _crop(size, preprocessing), preprocessing.interpolation)
    return _normalised((_tensor(np.array(kept)) / 255).expand(3, -1, -1), preprocessing)


def _read(path: str | os.PathLike[str], limit_pixels: int, use: Callable[[Image.Image], Read]) -> Read:
    """What ``use`` makes of the picture in a file, decoded and upright; an ImageError if there is none."""
    checks.whole_number(limit_pixels, "limit_pixels", minimum=1)
    file = Path(os.path.expanduser(path))
    try:
        if not file.is_file():
            raise ImageError("is a folder" if file.is_dir() else "there is no such file")
        with Image.open(file, formats=_formats()) as image:
            if image.width * image.height > limit_pixels:
                raise ImageError(f"{image.width}x{image.height} pixels are more than the {limit_pixels} allowed")
            image.load()
            turn = _TURNS.get(_orientation(image))
            return use(_opaque(image if turn is None else image.transpose(turn)))
    except ImageError as error:
        raise ImageError(f"image {str(file)!r}: {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"image {str(file)!r}: {error}") from error
    except UnidentifiedImageError as error:
        reason = "is not an image that can be read" if file.stat().st_size else "is empty"
        raise ImageError(f"image {str(file)!r}: {reason}") from error
    except MemoryError as error:
        raise ImageError(f"image {str(file)!r}: does not fit in memory") from error
    except (PermissionError, NotADirectoryError) as error:
        raise ImageError(f"image {str(file)!r}: {error.strerror}") from error
    # What a broken file raises is up to the decoder that meets it; all of it means the same to the caller.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"image {str(file)!r}: broken or cut off ({reason})") from error


@cache
def _formats() -> tuple[str, ...]:
    """Those of the formats that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or the EXIF block is broken: the pixels are still good."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (ArithmeticError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return 1


def _decoded(image: Image.Image) -> Tensor:
    """The pixels [1 or 3, H, W] as float32 in 0 to 1, over white where transparent."""
    if image.mode.startswith("I;16"):
        return _tensor(np.asarray(image).astype(np.int32)) / 65535
    if image.mode in ("I", "F"):
        # "I" has 32 bits but comes from 16-bit files (PGM, TIFF); "F" has no agreed range.
        limit = 65535 if image.mode == "I" else 1
        values = _tensor(np.array(image))
        low, high = (bound.item() for bound in values.aminmax())
        if not (low >= 0 and high <= limit):
            raise ImageError(f"pixels of {values.dtype} should be 0 to {limit}, got {low:g} to {high:g}")
        return values / limit
    if not _is_plain(image):
        rgba = _tensor(np.array(image.convert("RGBA"))) / 255
        return rgba[:3] * rgba[3:] + (1 - rgba[3:])
    return _tensor(np.array(_plain(image))) / 255


def _is_plain(image: Image.Image) -> bool:
    """Whether a picture has 8 bits and nothing transparent."""
    deep = image.mode.startswith("I;16") or image.mode in ("I", "F")
    return not (deep or image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info)


def _opaque(image: Image.Image) -> Image.Image:
    """A picture that could be transparent and is not anywhere (most screenshots), without its alpha: same colours."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey: an alpha of 8 bits would cost it its low byte
        return image
    layers = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
    if layers.getchannel("A").getextrema()[0] != 255:
        return image
    return layers.convert("L" if layers.mode == "LA" else "RGB")


def _plain(image: Image.Image) -> Image.Image:
    """A plain picture in grey or in red, green and blue."""
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _tensor(pixels: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    """[H, W] or [H, W, C] as [C, H, W], C first in memory too."""
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1).contiguous()


# ------------------------------------------------------------------------------------------- a network's pictures


def load_images(
    paths: Paths,
    *,
    model: nn.Module | None = None,
    size: int | tuple[int, int] | None = None,
    limit_pixels: int = LIMIT_PIXELS,
) -> tuple[Tensor, list[str]]:
    """Pictures ready for ``model``, [N, 3, H, W] float32 on the CPU, and their names.

    Args:
        paths: files, folders, patterns, see :func:`find_images`.
        model: prepares the pictures as :func:`fastviz.models.preprocessing` says (for most of torchvision's networks:
            shorter side resized to 256 pixels, centre crop of 224x224, normalised). None: resized to 256 and cropped to
            224x224, values 0 to 1.
        size: height and width in pixels instead of the model's, or one number for both. The shorter side is resized to
            the model's number of pixels, or to the larger of ``size`` where that is more.
        limit_pixels: see :func:`read_image`.

    A name is the path relative to the folder given, else the file's own name; where two would be the same, all names
    are relative to the folder that holds all the images.

    Raises:
        ImageError: a file cannot be read or prepared; names it.
        ValueError: nothing found; pictures of different sizes for a model without a fixed size.
    """
    settings = settings_for(model, size)
    files, names = find_named(paths)
    prepared = [read_prepared(file, settings, limit_pixels=limit_pixels) for file in files]
    shapes = {picture.shape[1:]: name for name, picture in zip(names, prepared, strict=True)}
    if len(shapes) > 1:
        (first, first_name), (other, other_name) = list(shapes.items())[:2]
        raise ValueError(
            f"pictures should have one size, got {list(first)} for {first_name!r} and {list(other)} for "
            f"{other_name!r}; give size"
        )
    return torch.stack(prepared), names


def settings_for(model: nn.Module | None, size: int | tuple[int, int] | None = None) -> Preprocessing:
    """How :func:`load_images` prepares pictures for ``model``, None for none, at another ``size`` if one is given."""
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
    """``image`` resized, cropped and normalised for a network.

    The same numbers as torchvision's ``ImageClassification`` transform of a Pillow image: the longer side and the
    crop's offset are rounded as there, and a picture of 8 bits (all values multiples of 1/255) is resized by Pillow, to
    8 bits. Others (16 bits, blended transparency) are resized with the same antialiased weights without rounding. Of a
    picture so narrow that it would have more than :data:`LIMIT_PIXELS` pixels once resized, only the crop is computed;
    its values may then differ in the last of the 8 bits, as the place of the crop is rounded to float32.

    Args:
        image: [3, H, W] or [N, 3, H, W] with values 0 to 1.
        preprocessing: for example ``fastviz.models.preprocessing(model)``. With one number in ``mean`` the picture
            becomes grey, 0.299 red + 0.587 green + 0.114 blue, with one channel.

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
    x = _normalised(_resized(x, size, _crop(size, preprocessing), preprocessing.interpolation), preprocessing)
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


def _normalised(x: Tensor, preprocessing: Preprocessing) -> Tensor:
    return (x - _channels(preprocessing.mean, x)) / _channels(preprocessing.std, x)


def _resized(x: Tensor, size: tuple[int, int], crop: tuple[int, int, int, int], mode: str) -> Tensor:
    """The ``crop`` of pictures [N, C, H, W] resized to ``size``; of 8 bits as torchvision has it from Pillow."""
    top, left, bottom, right = crop
    if size == tuple(x.shape[-2:]):
        return x[..., top:bottom, left:right]
    levels = (x.detach() * 255).round()
    eight_bits = torch.allclose(levels / 255, x.detach(), rtol=0, atol=1e-6)
    if not eight_bits and size[0] * size[1] <= LIMIT_PIXELS:
        return tensors.resize(x, *size, mode)[..., top:bottom, left:right]
    pixels = levels.to("cpu", torch.uint8) if eight_bits else x.detach().to("cpu", torch.float32)
    resized = [_resized_picture(Image.fromarray(plane), size, crop, mode) for plane in pixels.flatten(0, 1).numpy()]
    kept = torch.from_numpy(np.stack([np.asarray(plane) for plane in resized]))
    return (kept.to(x) / 255 if eight_bits else kept.to(x).clamp(0, 1)).view(*x.shape[:2], *kept.shape[1:])


def _resized_picture(
    image: Image.Image, size: tuple[int, int], crop: tuple[int, int, int, int], mode: str
) -> Image.Image:
    """The ``crop`` (top, left, bottom, right) of a Pillow picture resized to ``size`` (height, width)."""
    (height, width), (top, left, bottom, right) = size, crop
    if height * width > LIMIT_PIXELS and size != (image.height, image.width):
        # Pillow can compute a part of the resized picture: the filter reaches beyond the box as in the whole.
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

    Raises:
        TypeError: ``x`` is not a floating-point tensor, or ``preprocessing`` neither of the two.
        ValueError: another shape, or a model whose preprocessing is not known.
    """
    checks.tensor(x, "x", dims=(3, 4), layout="[C, H, W] or [N, C, H, W]")
    if not isinstance(preprocessing, Preprocessing):
        preprocessing = models.preprocessing(checks.module(preprocessing, "preprocessing"))
    if x.shape[-3] != len(preprocessing.mean):
        raise ValueError(f"x should have {len(preprocessing.mean)} channels as the model has, got {x.shape[-3]}")
    picture = (x * _channels(preprocessing.std, x) + _channels(preprocessing.mean, x)).clamp(0, 1)
    return picture.expand(*x.shape[:-3], 3, *x.shape[-2:]) if x.shape[-3] == 1 else picture


def _channels(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    """One number a channel, to be added to or multiplied with pictures."""
    return like.new_tensor(numbers).view(-1, 1, 1)


# ------------------------------------------------------------------------------------------------------- writing


_KINDS: dict[str, tuple[str, dict[str, int | bool]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
}


def picture_path(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """``path``, if :func:`save_image` can write it: asked before long work, so that none of it is lost.

    Raises:
        ValueError: another ending than .png, .jpg, .jpeg or .webp.
        FileNotFoundError: its folder does not exist.
    """
    file = Path(os.path.expanduser(path))
    if file.suffix.lower() not in _KINDS:
        raise ValueError(f"{argument} should end in {', '.join(_KINDS)}, got {str(file)!r}")
    if not file.parent.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    return file


def save_image(picture: Tensor, path: str | os.PathLike[str]) -> None:
    """Write a picture as PNG, JPEG (quality 95, full colour resolution) or WebP (lossless), as the path's ending says.

    Values are rounded to 8 bits. The file appears under its name when it is complete, replacing an older one.

    Args:
        picture: [3, H, W], floating-point in 0 to 1, or uint8.
        path: ends in .png, .jpg, .jpeg or .webp; the folder exists.

    Raises:
        TypeError: ``picture`` is not a floating-point or uint8 tensor.
        ValueError: another shape, values outside 0 to 1, another ending.
        OSError: the file cannot be written; names it.
    """
    eight_bits = isinstance(picture, Tensor) and picture.dtype == torch.uint8
    checks.tensor(picture, "picture", dims=(3,), layout="[3, H, W]", floating=not eight_bits)
    if picture.shape[0] != 3:
        raise ValueError(f"picture should have shape [3, H, W], got {list(picture.shape)}")
    if not eight_bits:
        tensors.check_range(picture, "picture")
        picture = (picture.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    file = picture_path(path)
    kind, options = _KINDS[file.suffix.lower()]
    pixels = picture.permute(1, 2, 0)
    encoded = io.BytesIO()
    Image.fromarray(pixels.cpu().contiguous().numpy()).save(encoded, kind, **options)
    with whole_file(file) as stream:
        stream.write(encoded.getbuffer())
