"""Where a tensor holds the images of a batch, and the tensors of a call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = [
    "LOST",
    "SAME",
    "TILES",
    "UNWRITTEN",
    "Images",
    "Known",
    "Lost",
    "Same",
    "Tiles",
    "Unwritten",
    "leaves",
    "operands",
]


class Images(NamedTuple):
    """Where a tensor holds images: in dimension ``dim``, of size outer · N · inner, with the images in the middle."""

    dim: int
    outer: int = 1
    inner: int = 1


class Same:
    """The tensor does not depend on the images."""


class Unwritten:
    """Memory that has not been written to yet."""


class Lost:
    """The tensor depends on the images, but where it holds them is not known."""


class Tiles:
    """Images cut into tiles by this package's own convolutions, which put each back into the map it came from."""


SAME, UNWRITTEN, LOST, TILES = Same(), Unwritten(), Lost(), Tiles()
Known = Images | Same | Unwritten | Lost | Tiles


def operands(values: Any) -> Iterator[Tensor]:
    """The tensors among the arguments of a call, and in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from operands(value)
        elif isinstance(value, dict):
            yield from operands(value.values())


def leaves(value: object) -> Iterator[Tensor]:
    """The tensors of an output: one, or several in lists, dictionaries and the attributes of objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from leaves(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from leaves(each)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        yield from leaves(vars(value))
