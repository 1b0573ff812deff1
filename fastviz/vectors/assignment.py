"""Assignment of points on a plane to cells, at most one per cell: for scatters, and grids without holes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from fastviz._util import checks

__all__ = ["Box", "arrange", "cells_of"]

_EXACT_POINTS, _EXACT_CELLS = 2048, 8192
"""Up to this many points and cells the optimal assignment is computed, which takes about 5 seconds at the limit."""

_WINDOW = 20
"""Side, in cells, of the windows within which larger assignments are optimal."""

_SWEEPS, _WORTHWHILE = 12, 0.002

_CELLS_A_POINT = 3.0


def cells_of(coordinates: Tensor, layout: Literal["scatter", "grid"] = "scatter") -> tuple[Tensor, tuple[int, int]]:
    """Where ``coordinates`` [N, 2] fall on the cells of a map, float64 [N, 2]; and how many rows and columns it has.

    Points are from 0 to the number of rows and columns; cell (i, j) has its centre at (i + 0.5, j + 0.5). If all points
    have the same coordinate on an axis, they lie in its middle.
    """
    checks.one_of(layout, "layout", ("scatter", "grid"))
    checks.tensor(coordinates, "coordinates", dims=(2,), layout="[N, 2]")
    N = len(coordinates)
    if coordinates.shape[1] != 2 or not N:
        raise ValueError(f"coordinates should have shape [N, 2], N at least 1, got {list(coordinates.shape)}")
    if not coordinates.isfinite().all():
        raise ValueError("coordinates should be finite, got NaN or infinity")
    across, up = coordinates.detach().double().cpu().unbind(1)
    plane = torch.stack([-up, across], dim=1)
    low, high = plane.aminmax(dim=0)
    extent = high - low
    if layout == "grid":
        columns = math.isqrt(N - 1) + 1
        rows = -(-N // columns)
        scale = torch.tensor([rows, columns]) / torch.where(extent > 0, extent, 1)
    else:
        ratio = float((extent[1] / extent[0]).clamp(0.5, 2)) if (extent > 0).all() else 1.0
        columns = max(1, round(math.sqrt(_CELLS_A_POINT * N * ratio)))
        rows = max(1, math.ceil(_CELLS_A_POINT * N / columns))
        scale = (torch.tensor([rows, columns]) / torch.where(extent > 0, extent, 1)).min().expand(2)
    size = torch.tensor([rows, columns])
    return (plane - (low + high) / 2) * scale + size / 2, (rows, columns)


def arrange(points: Tensor, rows: int, columns: int) -> Tensor:
    """Assign each point a cell of its own nearby: int64 [N], row · ``columns`` + column.

    The sum of squared distances from the points to the centres of their cells is minimal for up to 2,048 points and
    8,192 cells (by scipy's ``linear_sum_assignment``, which takes seconds there). Beyond, the plane is halved, again
    and again, at the cells' borders, and each half takes the points on its side as far as they fit. Then the assignment
    within windows of 20×20 cells, half a window apart, is made optimal, window after window, until nothing improves.
    Where both were computed, the sum was at most 2 % above the minimum.

    Args:
        points: float64 [N, 2], row and column, see :func:`cells_of`; N at most rows · columns.
        rows, columns: of cells.

    Raises:
        ValueError: more points than cells.
        ModuleNotFoundError: scipy is not installed.

    >>> arrange(torch.tensor([[0.4, 0.6], [0.6, 0.6]], dtype=torch.float64), 1, 2).tolist()
    [0, 1]
    """
    N = len(points)
    if rows * columns < N:
        raise ValueError(f"points should be at most as many as cells, {rows * columns}, got {N}")
    whole = (0, 0, rows, columns)
    cell = torch.full((N,), -1)
    if N <= _EXACT_POINTS and rows * columns <= _EXACT_CELLS:
        _assign(points, torch.arange(N), whole, columns, cell)
        return cell
    for members, box in _halves(points, torch.arange(N), whole):
        _assign(points, members, box, columns, cell)
    distance = _distance(points, cell, columns)
    for sweep in range(_SWEEPS):
        for box in _windows(rows, columns, sweep):
            row, column = cell // columns, cell % columns
            inside = (box[0] <= row) & (row < box[2]) & (box[1] <= column) & (column < box[3])
            _assign(points, inside.nonzero().flatten(), box, columns, cell)
        before, distance = distance, _distance(points, cell, columns)
        if sweep % 4 == 3 and distance > (1 - _WORTHWHILE) * before:
            break
    return cell


Box = tuple[int, int, int, int]  # top, left, bottom, right, in cells, half open


def _distance(points: Tensor, cell: Tensor, columns: int) -> float:
    centres = torch.stack([cell // columns, cell % columns], dim=1) + 0.5
    return float(((points - centres) ** 2).sum())


def _assign(points: Tensor, members: Tensor, box: Box, columns: int, cell: Tensor) -> None:
    """Assign the cells of ``box`` to the ``members`` optimally."""
    if not len(members):
        return
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('placing images needs scipy: pip install "fastviz[maps]"', name="scipy") from error
    row, column = torch.arange(box[0], box[2]), torch.arange(box[1], box[3])
    down = (points[members, :1] - (row + 0.5)) ** 2
    across = (points[members, 1:] - (column + 0.5)) ** 2
    cost = (down[:, :, None] + across[:, None, :]).flatten(1)
    _, chosen = linear_sum_assignment(cost.numpy())
    index = torch.from_numpy(chosen)
    cell[members] = row[index // len(column)] * columns + column[index % len(column)]


def _halves(points: Tensor, members: Tensor, box: Box) -> Iterator[tuple[Tensor, Box]]:
    """Parts of ``box`` of at most a window's cells, with the points that go there: never more than it has cells."""
    top, left, bottom, right = box
    height, width = bottom - top, right - left
    if height * width <= _WINDOW**2:
        yield members, box
        return
    axis = int(width > height)
    middle = (left + right) // 2 if axis else (top + bottom) // 2
    first, second = (
        ((top, left, bottom, middle), (top, middle, bottom, right))
        if axis
        else ((top, left, middle, right), (middle, left, bottom, right))
    )
    along = points[members, axis]
    room = [(part[2] - part[0]) * (part[3] - part[1]) for part in (first, second)]
    count = int((along < middle).sum())
    count = min(max(count, len(members) - room[1]), room[0])
    order = members[along.argsort(stable=True)]
    yield from _halves(points, order[:count], first)
    yield from _halves(points, order[count:], second)


def _windows(rows: int, columns: int, sweep: int) -> Iterator[Box]:
    """Windows that cover all cells, shifted by half of their side in one direction, or both, from sweep to sweep."""
    half = _WINDOW // 2
    shift_down, shift_across = (half, half, 0, 0)[sweep % 4], (half, 0, half, 0)[sweep % 4]
    for top in range(-shift_down, rows, _WINDOW):
        for left in range(-shift_across, columns, _WINDOW):
            yield max(0, top), max(0, left), min(rows, top + _WINDOW), min(columns, left + _WINDOW)
