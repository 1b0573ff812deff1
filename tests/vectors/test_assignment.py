"""Points on a plane given to cells."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

from fastviz.vectors import assignment
from fastviz.vectors.assignment import arrange, cells_of


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(points: torch.Tensor, cell: torch.Tensor, columns: int) -> float:
    centres = torch.stack([cell // columns, cell % columns], dim=1) + 0.5
    return float(((points - centres) ** 2).sum())


def test_the_best_arrangement_of_all():
    """Every way to put five points into six cells, tried."""
    points = random(5, 2) * torch.tensor([2.0, 3.0])
    least = min(distance(points, torch.tensor(way), 3) for way in itertools.permutations(range(6), 5))
    assert distance(points, arrange(points, 2, 3), 3) == pytest.approx(least, rel=1e-12)


def test_points_with_a_cell_to_themselves_stay_there():
    points = torch.tensor([[0.2, 0.9], [0.9, 3.1], [2.5, 1.5]], dtype=torch.float64)
    assert arrange(points, 3, 4).tolist() == [0, 3, 9]


@pytest.mark.parametrize("full", [True, False], ids=["grid", "scatter"])
@pytest.mark.parametrize("crowded", [True, False])
def test_a_large_arrangement_is_nearly_the_best(monkeypatch, full, crowded):
    """What is done where the best is out of reach, compared with it where it is not."""
    points = random(900, 2)
    if crowded:  # towards one corner
        points = points**3
    side = 30 if full else 52
    best = arrange(points * side, side, side)
    monkeypatch.setattr(assignment, "_EXACT_POINTS", 0)
    monkeypatch.setattr(assignment, "_WINDOW", 12)
    found = arrange(points * side, side, side)
    assert len(set(found.tolist())) == 900
    assert found.min() >= 0
    assert found.max() < side * side
    assert distance(points * side, found, side) <= 1.03 * distance(points * side, best, side)


def test_a_large_arrangement_of_points_in_one_place(monkeypatch):
    """Each half of the plane gets what the other has no room for."""
    monkeypatch.setattr(assignment, "_EXACT_POINTS", 0)
    monkeypatch.setattr(assignment, "_WINDOW", 4)
    found = arrange(torch.zeros(130, 2, dtype=torch.float64), 11, 12)
    assert len(set(found.tolist())) == 130
    assert found.max() < 132


def test_more_points_than_cells_are_refused():
    with pytest.raises(ValueError, match="points should be at most as many as cells, 6, got 7"):
        arrange(random(7, 2), 2, 3)


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ModuleNotFoundError, match=r'placing images needs scipy: pip install "fastviz\[maps\]"'):
        arrange(random(3, 2), 2, 2)


def test_a_grid_is_stretched_to_its_sides():
    points, shape = cells_of(torch.tensor([[0.0, 0.0], [10.0, 1.0], [5.0, 0.5], [0.0, 1.0]]), "grid")
    assert shape == (2, 2)
    assert points.tolist() == [[2, 0], [0, 2], [1, 1], [0, 0]]  # upwards is towards row 0


def test_a_scatter_keeps_its_proportions():
    """Twice as wide as high, three cells a point: 6 rows of 12 columns hold 24 points."""
    xy = random(24, 2)
    xy[0], xy[1] = 0, 1
    points, (rows, columns) = cells_of(xy * torch.tensor([2.0, 1.0]), "scatter")
    assert (rows, columns) == (6, 12)
    torch.testing.assert_close(points, torch.stack([6 - 6 * xy[:, 1], 12 * xy[:, 0]], dim=1))


@pytest.mark.parametrize("layout", ["scatter", "grid"])
def test_points_on_a_line_or_in_one_place(layout):
    for xy in (torch.zeros(7, 2), torch.tensor([[0.0, 3.0]]), torch.arange(7.0)[:, None] * torch.tensor([1.0, 0.0])):
        points, (rows, columns) = cells_of(xy, layout)
        assert (points[:, 0] == rows / 2).all()
        assert len(set(arrange(points, rows, columns).tolist())) == len(xy)
