"""Pillow pictures as tensors and back: modes, transparency, 8 and 16 bits.

A picture is a float tensor [3, H, W] (red, green, blue) with values 0 to 1; several are [N, 3, H, W].
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastviz.images.paths import ImageError

__all__ = [
    "LIMIT_PIXELS",
    "data_url",
    "decoded",
    "encoded",
    "is_picture",
    "is_plain",
    "picture_of",
    "plain",
    "tensor_of",
    "without_opaque_alpha",
]

LIMIT_PIXELS = 100_000_000
"""The most pixels a picture may have unless a call says otherwise: larger ones are mistakes or decompression bombs."""


_BAND = 256
"""Rows of a transparent picture that are converted at once."""


def is_picture(value: object) -> bool:
    """Whether ``value`` is a Pillow picture.

    Args:
        value: any object.

    Returns:
        True for every class of Pillow's images.

    Raises:
        Nothing, whatever ``value`` is.

    >>> is_picture(Image.new("RGB", (4, 4))), is_picture("photo.jpg")
    (True, False)
    """
    return isinstance(value, Image.Image)


def picture_of(pixels: Tensor) -> Image.Image:
    """A Pillow picture of a uint8 tensor.

    Args:
        pixels: uint8 [3, H, W] in colour, or [1, H, W] in grey, on any device.

    Returns:
        Mode RGB or L.

    Raises:
        ValueError: another number of channels.

    >>> picture_of(torch.zeros(1, 2, 3, dtype=torch.uint8)).size
    (3, 2)
    """
    array = pixels.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The content of an image file of this ``kind``, such as ``"PNG"`` or ``"JPEG"``, with Pillow's ``options``.

    >>> encoded(Image.new("L", (4, 4)), "PNG")[1:4]
    b'PNG'
    """
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(content: bytes, kind: str) -> str:
    """The content of an image file as a ``data:`` URL; ``kind`` is ``"png"`` or ``"jpeg"``.

    >>> data_url(b"content", "png")
    'data:image/png;base64,Y29udGVudA=='
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def decoded(image: Image.Image) -> Tensor:
    """The pixels [1 or 3, H, W] as float32 in 0 to 1, over white where transparent."""
    if image.mode.startswith("I;16"):
        return tensor_of(np.asarray(image).astype(np.float32)).div_(65535)
    if image.mode in ("I", "F"):
        # "I" has 32 bits but comes from 16-bit files (PGM, TIFF); "F" has no agreed range.
        limit = 65535 if image.mode == "I" else 1
        values = tensor_of(np.array(image))
        low, high = (bound.item() for bound in values.aminmax())
        if not (low >= 0 and high <= limit):
            raise ImageError(f"pixels of {values.dtype} should be 0 to {limit}, got {low:g} to {high:g}")
        return values / limit
    return tensor_of(np.array(plain(image))) / 255 if is_plain(image) else _over_white(image)


def _over_white(image: Image.Image) -> Tensor:
    """[3, H, W], a band of rows at a time: four channels of floats of a large picture would be most of the memory."""
    pixels = torch.empty(3, image.height, image.width)
    for top in range(0, image.height, _BAND):
        bottom = min(top + _BAND, image.height)
        rgba = tensor_of(np.array(image.crop((0, top, image.width, bottom)).convert("RGBA"))) / 255
        torch.add(rgba[:3] * rgba[3:], 1 - rgba[3:], out=pixels[:, top:bottom])
    return pixels


def is_plain(image: Image.Image) -> bool:
    """Whether a picture has 8 bits and nothing transparent."""
    deep = image.mode.startswith("I;16") or image.mode in ("I", "F")
    return not (deep or image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info)


def without_opaque_alpha(image: Image.Image) -> Image.Image:
    """The picture without its alpha channel, if that is opaque everywhere (as in most screenshots)."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey: an 8-bit alpha channel would cost the low byte
        return image
    layers = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
    if layers.getchannel("A").getextrema()[0] != 255:
        return image
    return layers.convert("L" if layers.mode == "LA" else "RGB")


def plain(image: Image.Image) -> Image.Image:
    """A plain picture in grey or in red, green and blue."""
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def tensor_of(pixels: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    """[H, W] or [H, W, C] as [C, H, W], C first in memory too."""
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1).contiguous()
