"""Coarse to fine: a grid of windows computed everywhere at a coarse step, and finely where windows matter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastviz._util import checks

__all__ = ["drill_down"]


def drill_down(
    evaluate: Callable[[Tensor], Tensor],
    rows: int,
    columns: int,
    baseline: Tensor,
    *,
    factor: int = 4,
    fraction: float = 0.25,
) -> tuple[Tensor, Tensor]:
    """The scores of a grid of windows for each of N images, some of them interpolated.

    First every ``factor``-th row and column of windows is computed, including the last ones. They divide the grid into
    cells. In each image, the ``fraction`` of cells whose corners are furthest from the ``baseline`` is computed at
    every window; the other cells are interpolated bilinearly from their corners. Equal cells keep their order, from top
    left to bottom right. Krypton's adaptive drill-down: Nakandala, Kumar, Papakonstantinou 2019,
    https://doi.org/10.1145/3299869.3319874; approximate.

    Args:
        evaluate: returns the scores [K] of the windows with these numbers, int64 [K]; window (row, column) of image n
            has the number (n · rows + row) · columns + column. With T targets per sample the scores are [K, T].
        rows: of the grid.
        columns: of the grid.
        baseline: [N] or [N, T], the scores of the unchanged images; on the device of the scores.
        factor: step of the coarse rows and columns, in windows.
        fraction: of the cells that are computed finely, 0 to 1; above 0, at least one cell is.

    Returns:
        The scores [N · rows · columns] or [N · rows · columns, T], and which windows were computed, bool
        [N, rows, columns].

    Raises:
        TypeError, ValueError: a number out of range; the message names it.

    >>> scores, computed = drill_down(lambda number: (number == 0).double(), 9, 9, torch.zeros(1), fraction=0.25)
    >>> float(scores[0]), int(computed.sum())
    (1.0, 30)
    """
    for value, argument in ((rows, "rows"), (columns, "columns"), (factor, "factor")):
        checks.whole_number(value, argument, minimum=1)
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction should be from 0 to 1, got {fraction}")
    N = len(baseline)
    down, across = _lines(rows, factor), _lines(columns, factor)
    first = torch.arange(N)[:, None, None] * rows * columns
    corners = evaluate((first + down[:, None] * columns + across).flatten())
    targets = corners.shape[1:]
    # [N, T, coarse rows, coarse columns], T = 1 where there is one target
    corners = corners.reshape(N, len(down), len(across), -1).permute(0, 3, 1, 2)
    weights = _interpolation(down, rows).to(corners), _interpolation(across, columns).to(corners)
    between = weights[0] @ corners @ weights[1].T
    scores = between.permute(0, 2, 3, 1).reshape(N * rows * columns, *targets)

    away = (corners - baseline.reshape(N, -1, 1, 1)).abs().amax(1)
    fine = _fine(away, down, across, fraction, (rows, columns))
    coarse = torch.zeros(rows, columns, dtype=torch.bool)
    coarse[down[:, None], across] = True
    missing = (fine & ~coarse).flatten().nonzero().flatten()
    if len(missing):
        scores[missing.to(scores.device)] = evaluate(missing)
    return scores, fine | coarse


def _fine(away: Tensor, down: Tensor, across: Tensor, fraction: float, size: tuple[int, int]) -> Tensor:
    """The windows of the ``fraction`` of cells with the corners furthest ``away`` [N, ...]: bool [N, rows, columns]."""
    cells = torch.nn.functional.max_pool2d(away[:, None], (min(2, len(down)), min(2, len(across))), stride=1).flatten(1)
    order = torch.argsort(cells, descending=True, stable=True)
    count = max(1, round(fraction * cells.shape[1])) if fraction else 0
    fine = torch.zeros(len(away), *size, dtype=torch.bool)
    for number, chosen in enumerate(order[:, :count].tolist()):
        for cell in chosen:
            i, j = divmod(cell, max(1, len(across) - 1))
            bottom = int(down[i + 1]) if len(down) > 1 else 0
            right = int(across[j + 1]) if len(across) > 1 else 0
            fine[number, int(down[i]) : bottom + 1, int(across[j]) : right + 1] = True
    return fine


def _lines(count: int, factor: int) -> Tensor:
    """Every ``factor``-th of ``count`` lines and the last one."""
    return torch.tensor(sorted({*range(0, count, factor), count - 1}))


def _interpolation(lines: Tensor, count: int) -> Tensor:
    """The interpolation weights of ``count`` lines from the given ``lines``: float64 [count, lines]."""
    weights = torch.zeros(count, len(lines), dtype=torch.float64)
    place = torch.arange(count)
    after = torch.searchsorted(lines, place).clamp(max=len(lines) - 1)
    before = (after - 1).clamp(min=0)
    gap = (lines[after] - lines[before]).clamp(min=1)
    share = (place - lines[before]).double() / gap
    weights[place, before] += 1 - share
    weights[place, after] += share
    return weights
