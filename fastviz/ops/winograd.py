"""The two transforms of a 3×3 convolution by F(4×4, 3×3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastviz.ops._native import native

__all__ = ["winograd_maps", "winograd_tiles"]


def winograd_tiles(x: Tensor, padding: Sequence[int], tiles: Sequence[int], begin: int, end: int) -> Tensor:
    """Transform the inputs of tiles of a 3×3 convolution: see :func:`fastviz.execution.fast_conv.winograd.convolved`.

    On the CPU only.

    Args:
        x: [N, C, H, W], float32, channels_last.
        padding: zeros above, and left.
        tiles: rows and columns of tiles of an image.
        begin, end: numbers of the tiles, counted image by image, row by row.

    Returns:
        [36, end − begin, C], float32.

    Raises:
        RuntimeError: an argument has another shape, dtype or memory order, or is not in its range.

    >>> x = torch.ones(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    >>> winograd_tiles(x, padding=(1, 1), tiles=(1, 1), begin=0, end=1).shape
    torch.Size([36, 1, 8])
    """
    found: Tensor = native._winograd_tiles(x, *padding, *tiles, begin, end)
    return found


def winograd_maps(
    output: Tensor, product: Tensor, bias: Tensor | None, other: Tensor | None, rectify: bool, begin: int
) -> None:
    """Write tiles of a 3×3 convolution to ``output`` [N, K, h, w], channels_last, from number ``begin`` on.

    On the CPU only.

    Args:
        output: float32.
        product: [36, tiles, K]; the matrix products between both transforms.
        bias: [K].
        other: as ``output``; added.
        rectify: whether what is below 0 becomes 0.
        begin: the number of the first tile, counted image by image, row by row.

    Raises:
        RuntimeError: an argument has another shape, dtype or memory order, or is not in its range.

    >>> output = torch.empty(1, 2, 4, 4).contiguous(memory_format=torch.channels_last)
    >>> winograd_maps(output, torch.zeros(36, 1, 2), torch.tensor([1.0, 2.0]), None, rectify=False, begin=0)
    >>> output[0, :, 0, 0]
    tensor([1., 2.])
    """
    native._winograd_maps(output, product, bias, other, rectify, begin)


@torch.library.register_fake("fastviz::_winograd_tiles")
def _winograd_tiles_fake(
    x: Tensor, top: int, left: int, tile_rows: int, tile_columns: int, begin: int, end: int
) -> Tensor:
    return x.new_empty(36, end - begin, x.shape[1])


@torch.library.register_fake("fastviz::_winograd_maps")
def _winograd_maps_fake(*arguments: object) -> None:
    return None
