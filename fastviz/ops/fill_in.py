"""Filling in removed pixels from their neighbours, plane by plane."""

from __future__ import annotations

import torch
from torch import Tensor

from fastviz.ops._native import native

__all__ = ["fill_in"]


def fill_in(values: Tensor, removed: Tensor, accuracy: float, most_steps: int) -> Tensor:
    """Fill in the removed pixels of ``values``, in place, on the CPU: ROAD's linear systems.

    Each becomes the weighted mean of its 8 neighbours, filled in or not; csrc/kernels/kernels.h says how.

    Args:
        values: [B, C, H, W], float64, contiguous, finite; removed values are ignored.
        removed: bool [B, H, W], in each picture some pixels and not all.
        accuracy: largest estimated error, as a fraction of the largest absolute value that is known of a plane.
        most_steps: of the solver.

    Returns:
        Int64 [B, C], how many steps it took; -1 where ``most_steps`` were not enough.

    Raises:
        RuntimeError: an argument has another shape, dtype or memory order, or values are not in its range.

    >>> values = torch.arange(9.0, dtype=torch.float64).reshape(1, 1, 3, 3)
    >>> removed = torch.zeros(1, 3, 3, dtype=torch.bool)
    >>> removed[0, 1, 1] = True
    >>> steps = fill_in(values, removed, 1e-9, 100)
    >>> round(float(values[0, 0, 1, 1]), 6)
    4.0
    """
    found: Tensor = native._fill_in(values, removed, accuracy, most_steps)
    return found


@torch.library.register_fake("fastviz::_fill_in")
def _fill_in_fake(values: Tensor, removed: Tensor, accuracy: float, most_steps: int) -> Tensor:
    return values.new_empty(values.shape[:2], dtype=torch.int64)
