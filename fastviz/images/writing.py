"""Tensors to image files: PNG, JPEG and WebP."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fastviz._util import checks
from fastviz._util.files import whole_file
from fastviz.images import tensors
from fastviz.images.pillow import encoded

__all__ = ["picture_path", "save_image"]

_KINDS: dict[str, tuple[str, dict[str, int | bool]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
}


def picture_path(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """``path``, if :func:`save_image` can write it: to be asked before long work, so that none of it is lost.

    Args:
        path: ``~`` is the home folder.
        argument: what an error calls it.

    Returns:
        The path, with the home folder written out.

    Raises:
        ValueError: another ending than .png, .jpg, .jpeg or .webp.
        FileNotFoundError: its folder does not exist.

    >>> picture_path("map.png").name
    'map.png'
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

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "white.png")
    >>> save_image(torch.ones(3, 4, 6), path)
    >>> Image.open(path).size
    (6, 4)
    """
    eight_bits = isinstance(picture, Tensor) and picture.dtype == torch.uint8
    checks.tensor(picture, "picture", dims=(3,), layout="[3, H, W]", floating=not eight_bits)
    if picture.shape[0] != 3:
        raise ValueError(f"picture should have shape [3, H, W], got {list(picture.shape)}")
    if not eight_bits:
        tensors.check_range(picture, "picture")
        picture = tensors.eight_bits(picture)
    file = picture_path(path)
    kind, options = _KINDS[file.suffix.lower()]
    pixels = picture.permute(1, 2, 0)
    content = encoded(Image.fromarray(pixels.cpu().contiguous().numpy()), kind, **options)
    with whole_file(file) as stream:
        stream.write(content)
