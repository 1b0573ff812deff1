"""Coarse to fine: a grid of windows computed everywhere at a coarse step, and finely where windows matter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastviz import checks

__all__ = ["drill_down"]


def drill_down(
    evaluate: Callable[[Tensor], Tensor],
    rows: int,
    columns: int,
    baseline: float,
    *,
    factor: int = 4,
    fraction: float = 0.25,
) -> tuple[Tensor, Tensor]:
    """The scores of a grid of windows, some of them interpolated.

    First every ``factor``-th row and column of windows is computed, the last ones too. They divide the grid into cells;
    of these the ``fraction`` whose corners are furthest from ``baseline`` are computed window by window, and the
    windows of the others get the bilinear interpolation of their corners. Equal cells keep their order, from top left
    to bottom right. Krypton's adaptive drill-down: Nakandala, Kumar, Papakonstantinou 2019,
    https://doi.org/10.1145/3299869.3319874; approximate.

    Args:
        evaluate: gives the scores [K] of the windows of this number, int64 [K], counted along the rows of the grid.
        rows: of the grid.
        columns: of the grid.
        baseline: the score of the image as it is.
        factor: step of the coarse rows and columns, in windows.
        fraction: of the cells that are computed finely, 0 to 1; at least one is, unless it is 0.

    Returns:
        The scores [rows, columns] and which of them were computed, bool [rows, columns].

    Raises:
        TypeError, ValueError: a number out of range, with its name.

    >>> scores, computed = drill_down(lambda number: (number == 0).double(), 9, 9, 0.0, fraction=0.25)
    >>> float(scores[0, 0]), int(computed.sum())
    (1.0, 30)
    """
    for value, argument in ((rows, "rows"), (columns, "columns"), (factor, "factor")):
        checks.whole_number(value, argument, minimum=1)
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction should be from 0 to 1, got {fraction}")
    down, across = _lines(rows, factor), _lines(columns, factor)
    computed = torch.zeros(rows, columns, dtype=torch.bool)
    computed[down[:, None], across] = True
    corners = evaluate((down[:, None] * columns + across).flatten()).reshape(len(down), len(across))
    # [rows, coarse rows] x [coarse rows, coarse columns] x [coarse columns, columns]
    weights = _interpolation(down, rows).to(corners), _interpolation(across, columns).to(corners)
    scores: Tensor = weights[0] @ corners @ weights[1].T

    width = max(1, len(across) - 1)
    distance = torch.nn.functional.max_pool2d(
        (corners - baseline).abs()[None, None], (min(2, len(down)), min(2, len(across))), stride=1
    )
    order = torch.argsort(distance.flatten(), descending=True, stable=True)
    chosen = order[: max(1, round(fraction * len(order)))] if fraction else order[:0]
    fine = torch.zeros(rows, columns, dtype=torch.bool)
    for cell in chosen.tolist():
        i, j = divmod(cell, width)
        bottom = int(down[i + 1]) if len(down) > 1 else 0
        right = int(across[j + 1]) if len(across) > 1 else 0
        fine[int(down[i]) : bottom + 1, int(across[j]) : right + 1] = True
    missing = (fine & ~computed).flatten().nonzero().flatten()
    if len(missing):
        scores.view(-1)[missing] = evaluate(missing)
    return scores, computed | fine


def _lines(count: int, factor: int) -> Tensor:
    """Every ``factor``-th of ``count`` lines and the last one."""
    return torch.tensor(sorted({*range(0, count, factor), count - 1}))


def _interpolation(lines: Tensor, count: int) -> Tensor:
    """How much each of ``count`` lines takes from each of the given ``lines``: float64 [count, lines]."""
    weights = torch.zeros(count, len(lines), dtype=torch.float64)
    place = torch.arange(count)
    after = torch.searchsorted(lines, place).clamp(max=len(lines) - 1)
    before = (after - 1).clamp(min=0)
    gap = (lines[after] - lines[before]).clamp(min=1)
    share = (place - lines[before]).double() / gap
    weights[place, before] += 1 - share
    weights[place, after] += share
    return weights
