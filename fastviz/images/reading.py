"""Image files to tensors: any format, upright, prepared for a network."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.images.paths import ImageError, Paths, find_named
from fastviz.images.pillow import LIMIT_PIXELS, decoded, without_opaque_alpha
from fastviz.images.preprocessing import prepare, settings_for
from fastviz.models.descriptions import Preprocessing

__all__ = ["Read", "load_images", "read_image", "read_prepared", "read_views"]

Read = TypeVar("Read")

# Formats with pixels only. Some of Pillow's others start programs (EPS) or fetch missing parts.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | os.PathLike[str], *, limit_pixels: int = LIMIT_PIXELS) -> Tensor:
    """The picture in a file, [3, H, W] float32 in 0 to 1, turned as its EXIF orientation says.

    Greyscale becomes three equal channels. Transparent pixels are blended with white. CMYK is converted by (1 - ink)(1
    - black), without colour profiles; in a JPEG file it is taken to be stored inverted, as Adobe does. An animation
    gives its first frame. 8-bit values are divided by 255, 16-bit grey by 65535; of 16-bit colour, and 16-bit grey with
    transparency, Pillow gives the high byte, which is off by less than 1/255. Floating-point pixels (TIFF) are taken as
    they are, if in 0 to 1.

    Args:
        path: a file in one of the formats AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PBM/PGM/PPM, QOI, TIFF, WebP,
            whatever it is called.
        limit_pixels: the most pixels; more are refused before anything is decoded. Pillow's own limit
            (``PIL.Image.MAX_IMAGE_PIXELS``) stays in force: it warns above 89 million and refuses above 179 million.

    Returns:
        [3, H, W], float32 on the CPU, 0 to 1.

    Raises:
        ImageError: no such file, not a file, empty, broken, cut off, not an image, too many pixels. Names the file.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "grey.png")
    >>> Image.new("L", (6, 4), 51).save(path)
    >>> read_image(path)[:, 0, 0]
    tensor([0.2000, 0.2000, 0.2000])
    """
    picture = _read(path, limit_pixels, decoded)
    return picture.expand(3, -1, -1).contiguous()


def read_prepared(
    path: str | os.PathLike[str], preprocessing: Preprocessing, *, limit_pixels: int = LIMIT_PIXELS
) -> Tensor:
    """``preprocess(read_image(path), preprocessing)``, the same numbers in a third of the time for pictures of 8 bits.

    Args:
        path, limit_pixels: as in :func:`read_image`.
        preprocessing: for example ``fastviz.models.preprocessing(model)``.

    Returns:
        [C, h, w], float32 on the CPU.

    Raises:
        ImageError: as :func:`read_image`; also a picture that cannot be prepared.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "grey.png")
    >>> Image.new("L", (6, 4), 51).save(path)
    >>> read_prepared(path, Preprocessing((2, 2), 2, (0.0,) * 3, (1.0,) * 3)).shape
    torch.Size([3, 2, 2])
    """
    return read_views(path, [preprocessing], limit_pixels=limit_pixels)[0]


def read_views(
    path: str | os.PathLike[str] | bytes,
    views: Sequence[Preprocessing],
    *,
    limit_pixels: int = LIMIT_PIXELS,
    name: str = "",
) -> list[Tensor]:
    """:func:`read_prepared` for each of the ``views``, from a file that is read and decoded once.

    Args:
        path, limit_pixels: as in :func:`read_image`; also the content of a file, as bytes.
        views: several ways of preparing the picture.
        name: what errors call it, where ``path`` is bytes.

    Returns:
        One tensor [C, h, w] a view, float32 on the CPU.

    Raises:
        ImageError: as :func:`read_prepared`.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "grey.png")
    >>> Image.new("L", (6, 4), 51).save(path)
    >>> views = [Preprocessing((side, side), side, (0.0,) * 3, (1.0,) * 3) for side in (2, 3)]
    >>> [view.shape[1] for view in read_views(path, views)]
    [2, 3]
    """

    def prepared(image: Image.Image) -> list[Tensor]:
        try:
            return [prepare(image, view) for view in views]
        except ValueError as error:
            raise ImageError(str(error)) from error

    return _read(path, limit_pixels, prepared, name)


def _read(
    path: str | os.PathLike[str] | bytes, limit_pixels: int, use: Callable[[Image.Image], Read], name: str = ""
) -> Read:
    """The result of ``use`` for the picture in a file, decoded and upright; an ImageError if there is none."""
    checks.whole_number(limit_pixels, "limit_pixels", minimum=1)
    content = path if isinstance(path, bytes) else None
    file = Path(name if isinstance(path, bytes) else os.path.expanduser(path))
    try:
        if content is None and not file.is_file():
            raise ImageError("is a folder" if file.is_dir() else "there is no such file")
        with Image.open(file if content is None else io.BytesIO(content), formats=_formats()) as image:
            if image.width * image.height > limit_pixels:
                raise ImageError(f"{image.width}x{image.height} pixels are more than the {limit_pixels} allowed")
            image.load()
            turn = _TURNS.get(_orientation(image))
            return use(without_opaque_alpha(image if turn is None else image.transpose(turn)))
    except ImageError as error:
        raise ImageError(f"image {str(file)!r}: {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"image {str(file)!r}: {error}") from error
    except UnidentifiedImageError as error:
        size = file.stat().st_size if content is None else len(content)
        reason = "is not an image that can be read" if size else "is empty"
        raise ImageError(f"image {str(file)!r}: {reason}") from error
    except MemoryError as error:
        raise ImageError(f"image {str(file)!r}: does not fit in memory") from error
    except (PermissionError, NotADirectoryError) as error:
        raise ImageError(f"image {str(file)!r}: {error.strerror}") from error
    # A broken file can raise anything, depending on the decoder. To the caller it all means the same.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"image {str(file)!r}: broken or cut off ({reason})") from error


@cache
def _formats() -> tuple[str, ...]:
    """Those of the formats that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if it is missing or the EXIF block is broken, since the pixels are still
    good."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (ArithmeticError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return 1


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
            shorter side resized to 256 pixels, centre crop of 224x224, normalized). None: resized to 256 and cropped to
            224x224, values 0 to 1.
        size: height and width in pixels instead of the model's, or one number for both. The shorter side is resized to
            the model's number of pixels, or to the larger of ``size`` where that is more.
        limit_pixels: see :func:`read_image`.

    A name is the path relative to the folder given, else the file's own name; where two would be the same, all names
    are relative to the folder that holds all the images.

    Returns:
        The batch, and a name for each image.

    Raises:
        ImageError: a file cannot be read or prepared; names it.
        ValueError: nothing found; pictures of different sizes for a model without a fixed size.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "grey.png")
    >>> Image.new("L", (6, 4), 51).save(path)
    >>> x, names = load_images(path.parent, size=64)
    >>> x.shape, names
    (torch.Size([1, 3, 64, 64]), ['grey.png'])
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
