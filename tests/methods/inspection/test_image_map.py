"""One large picture of many."""

from __future__ import annotations

import pytest
import torch

import fastviz as fv


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_picture_is_in_its_box():
    pictures = torch.randint(0, 256, (7, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for layout in ("scatter", "grid"):
        found = fv.image_map(pictures, random(7, 2), layout=layout)
        covered = torch.zeros(found.picture.shape[1:], dtype=torch.int64)
        for picture, (top, left, bottom, right) in zip(pictures, found.boxes.tolist(), strict=True):
            assert torch.equal(found.picture[:, top:bottom, left:right], picture)
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1  # none over another
        assert (found.picture[:, covered == 0] == 255).all()


def test_a_corner_is_a_corner():
    """To the right and upwards, as plots have it."""
    xy = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    boxes = fv.image_map(torch.zeros(4, 3, 4, 4), xy, layout="grid").boxes
    assert boxes[:, :2].tolist() == [[6, 1], [6, 6], [1, 1], [1, 6]]


def test_tiles():
    pictures = torch.ones(2, 3, 8, 4)
    xy = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    found = fv.image_map(pictures, xy, layout="grid", tile=16, background=0)
    assert found.picture.shape == (3, 18, 35)
    assert found.boxes.tolist() == [[1, 5, 17, 13], [1, 22, 17, 30]]  # as high as the tile, in its middle
    assert found.picture.float().mean() == pytest.approx(255 * 256 / (18 * 35))


def test_a_map_of_very_many_has_smaller_tiles(monkeypatch):
    monkeypatch.setattr("fastviz.methods.inspection.image_map._LARGEST_SIDE", 100)
    assert fv.image_map(torch.zeros(100, 3, 20, 20), random(100, 2), layout="grid").picture.shape == (3, 101, 101)


@pytest.mark.parametrize(
    ("pictures", "xy", "options", "words"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 2), {}, r"pictures should have shape \[N, 3, h, w\], N at least 1"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, 2), {}, "coordinates should be one for each of the 2 pictures, got 3"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3), {}, r"coordinates should have shape \[N, 2\]"),
        (torch.zeros(1, 3, 4, 4), torch.full((1, 2), torch.nan), {}, "coordinates should be finite"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 2), {"tile": 0}, "tile should be at least 1, got 0"),
        (
            torch.zeros(1, 3, 4, 4),
            torch.zeros(1, 2),
            {"background": 2},
            "background should be finite and from 0 to 1",
        ),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 2), {"layout": "heap"}, "layout should be one of 'scatter', 'grid'"),
    ],
)
def test_refuses(pictures, xy, options, words):
    with pytest.raises(ValueError, match=words):
        fv.image_map(pictures, xy, **options)
