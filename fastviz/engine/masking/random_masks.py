"""Smooth random masks: a coarse grid of zeros and ones, enlarged and shifted at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RandomMasks", "random_masks"]


@dataclass(frozen=True, eq=False)
class RandomMasks:
    """M masks, each its grid multiplied by two small matrices, so that any part of any mask can be computed directly.

    Attributes:
        grids: float [M, s, s], zeros and ones.
        shifts: int64 [M, 2], where the crop of the enlarged grid starts, in pixels.
        size: height and width of the masks.
    """

    grids: Tensor
    shifts: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.grids)

    def of(self, numbers: Tensor, step: int = 1) -> Tensor:
        """The masks with these indices, [B, H, W], 0 to 1; with a ``step`` only every ``step``-th row and column."""
        down, across = (self._weights(numbers, axis, step) for axis in (0, 1))
        return down @ self.grids[numbers] @ across.mT

    def _weights(self, numbers: Tensor, axis: int, step: int) -> Tensor:
        """[B, side, s], the weight of each cell in each row, or column, of the masks."""
        side, s = self.size[axis], self.grids.shape[1]
        cell = -(-side // s)
        # bilinear from the centres of s cells to (s + 1) · cell pixels; border cells extend outwards
        pixels = torch.arange(0, side, step) + self.shifts[numbers, axis][:, None]
        place = ((pixels + 0.5) * s / ((s + 1) * cell) - 0.5).clamp(0, s - 1)
        return (1 - (place[..., None] - torch.arange(s)).abs()).clamp(min=0).to(self.grids.dtype)


def random_masks(count: int, size: tuple[int, int], cells: int, keep: float, random: torch.Generator) -> RandomMasks:
    """``count`` RISE masks: grids of ``cells`` x ``cells`` that are one with probability ``keep``.

    Petsiuk, Das, Saenko 2018, "RISE", https://arxiv.org/abs/1806.07421: grids are enlarged to cells + 1 cells per side,
    each with the pixels of one cell of the image, and cropped at an offset drawn uniformly within a cell.
    """
    grids = (torch.rand(count, cells, cells, generator=random) < keep).float()
    sides = [-(-side // cells) for side in size]
    shifts = torch.stack([torch.randint(side, (count,), generator=random) for side in sides], dim=1)
    return RandomMasks(grids, shifts, size)
