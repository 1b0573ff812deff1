"""Uploads from browsers: read into memory within limits, never written to disk."""

from __future__ import annotations

from collections import OrderedDict
from secrets import token_hex

from starlette.requests import Request

from fastviz import images
from fastviz.models.descriptions import Preprocessing

__all__ = ["LIMIT_BYTES", "LIMIT_PIXELS", "Photographs", "TooLarge", "body_of"]

LIMIT_BYTES = 32 << 20
"""Maximum size of an uploaded photograph in bytes."""

LIMIT_PIXELS = 50_000_000
"""Maximum number of pixels, because a small file may decompress to a very large picture."""

_KEPT = 4


class TooLarge(ValueError):  # noqa: N818 - the name is clear without it
    """Raised when a request is larger than allowed."""


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request; reading stops after ``most`` bytes.

    Raises:
        TooLarge: the body is larger.
    """
    words = f"The photograph is larger than the {most >> 20} MB allowed." if most >= 1 << 20 else "Too long."
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and int(said) > most:
        raise TooLarge(words)
    taken = bytearray()
    async for piece in request.stream():
        taken += piece
        if len(taken) > most:
            raise TooLarge(words)
    return bytes(taken)


class Photographs:
    """The last few uploaded photographs, in memory, under keys that cannot be guessed."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    def keep(self, content: bytes, name: str) -> str:
        """Keep the bytes of a picture file, after checking that it can be read.

        Returns:
            Its key.

        Raises:
            ImageError: it is not a picture, or has too many pixels.
        """
        small = Preprocessing((8, 8), None, (0.0,) * 3, (1.0,) * 3)
        images.read_views(content, [small], limit_pixels=LIMIT_PIXELS, name=name)
        key = token_hex(8)
        self._kept[key] = name, content
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> tuple[str, bytes]:
        """Name and bytes of a photograph.

        Raises:
            LookupError: it is not kept, or no longer.
        """
        if key not in self._kept:
            raise LookupError("This photograph is no longer in memory: choose it again.")
        return self._kept[key]
