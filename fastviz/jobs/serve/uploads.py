"""What browsers send: read into memory within limits, never written to a disk."""

from __future__ import annotations

from collections import OrderedDict
from secrets import token_hex

from starlette.requests import Request

from fastviz import images
from fastviz.models.descriptions import Preprocessing

__all__ = ["LIMIT_BYTES", "LIMIT_PIXELS", "Photographs", "TooLarge", "body_of"]

LIMIT_BYTES = 32 << 20
"""The most bytes of a photograph that is sent."""

LIMIT_PIXELS = 50_000_000
"""The most pixels of one: what a small file unpacks to may fill the memory."""

_KEPT = 4


class TooLarge(ValueError):  # noqa: N818 - it says so
    """More was sent than is allowed."""


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request; not a byte more than ``most`` is taken in.

    Raises:
        TooLarge: there is more.
    """
    words = f"The photograph has more than the {most >> 20} MB that are allowed." if most >= 1 << 20 else "Too long."
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
    """The last few photographs that were sent, in memory, by names that cannot be guessed."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, bytes]] = OrderedDict()

    def keep(self, content: bytes, name: str) -> str:
        """Keep the bytes of a picture file, once it can be read.

        Returns:
            Its key.

        Raises:
            ImageError: it is no picture, or one of too many pixels; one sentence.
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
            LookupError: it is not kept (any more).
        """
        if key not in self._kept:
            raise LookupError("This photograph is not kept any more: choose it again.")
        return self._kept[key]
