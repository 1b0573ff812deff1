"""The two transforms of a 3×3 convolution by F(4×4, 3×3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastviz.ops._native import native

__all__ = ["winograd_maps", "winograd_tiles"]


def winograd_tiles(x: Tensor, padding: Sequence[int], tiles: Sequence[int], begin: int, end: int) -> Tensor:
    """The transformed inputs of tiles of a 3×3 convolution: [36, end − begin, C]; see
    :func:`fastviz.execution.fast_conv.winograd.convolved`.

    On the CPU only.

    Args:
        x: [N, C, H, W], float32, channels_last.
        padding: zeros above, and left.
        tiles: rows and columns of tiles of an image.
        begin, end: numbers of the tiles, counted image by image, row by row.
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
