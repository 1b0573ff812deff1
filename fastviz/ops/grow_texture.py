"""The loop of texture synthesis by neighbourhood search, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from fastviz.ops._native import native

__all__ = ["grow_texture"]


def grow_texture(
    canvas: tuple[Tensor, Tensor, Tensor],
    places: Tensor,
    chances: Tensor,
    sample: Tensor,
    usable: Tensor | None,
    weights: Tensor,
    epsilon: float,
    limit: float,
) -> None:
    """Fill pixels of ``canvas`` in turn, on the CPU.

    The loop of :func:`fastviz.synthesize_texture` in one call; csrc/kernels/kernels.h says what it computes. The search
    drops a window as soon as its sum over the known pixels with the largest weights exceeds that of the windows that
    can still be chosen. Sums only grow, so the choice equals that of the full search.

    Args:
        canvas: values [C, H, W], which of them are filled [H, W] bool, and the window that each came from [H, W] int64
            or -1, contiguous. All three are written to.
        places: [n] int64, where in the canvas, in the order in which they are filled; half a window from its border.
        chances: [n] float64, from 0 to below 1.
        sample: [C, h, w], float32 or float64, finite.
        usable: [h − window + 1, w − window + 1] bool, or None: all.
        weights: [window, window], 0 or more.
        epsilon: how much worse than the best a window may be.
        limit: mean squared error that a pixel must be below.

    Raises:
        RuntimeError: an argument has another shape, dtype or memory order, or values are not in its range.

    >>> filled, origin = torch.zeros(5, 5, dtype=torch.bool), torch.full((5, 5), -1)
    >>> filled[2, 2] = True
    >>> canvas = torch.where(filled, 0.5, 0.0)[None], filled, origin
    >>> place, chance = torch.tensor([2 * 5 + 3]), torch.zeros(1, dtype=torch.float64)  # the pixel on the right
    >>> grow_texture(canvas, place, chance, torch.full((1, 4, 4), 0.5), None, torch.ones(3, 3), 0.1, 0.3)
    >>> float(canvas[0][0, 2, 3]), bool(filled[2, 3])
    (0.5, True)
    """
    native._grow_texture(*canvas, places, chances, sample, usable, weights, epsilon, limit)


@torch.library.register_fake("fastviz::_grow_texture")
def _grow_texture_fake(*arguments: object) -> None:
    return None
