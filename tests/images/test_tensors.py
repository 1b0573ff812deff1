"""Pictures as tensors: scaling, grids, resizing, blur."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fastviz import images
from fastviz.images import tensors
from fastviz.models.descriptions import Preprocessing


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_is_antialiased_and_clipped_by_default(mode):
    x = torch.rand(2, 3, 9, 12).round()
    exact = F.interpolate(x, (5, 20), mode=mode, antialias=True)
    torch.testing.assert_close(tensors.resize(x, 5, 20, mode), exact.clamp(0, 1), rtol=0, atol=0)
    torch.testing.assert_close(tensors.resize(x - 0.5, 5, 20, mode, clip=False), exact - 0.5)
    low = tensors.resize(x.bfloat16(), 5, 20, mode)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact.clamp(0, 1), rtol=0, atol=0.01)


def test_pictures_of_the_same_size_are_unchanged():
    x = 3 * torch.randn(1, 3, 7, 8)
    assert tensors.resize(x, 7, 8, "bicubic") is x


def test_a_gaussian_by_hand():
    """Radius 1 for a third of a pixel; the border continues with the outermost pixels."""
    x = torch.tensor([[[[0.0, 1.0, 0.0]]]], dtype=torch.float64)
    side = torch.exp(torch.tensor(-0.5 / (1 / 3) ** 2, dtype=torch.float64))
    middle, side = 1 / (1 + 2 * side), side / (1 + 2 * side)
    found = tensors.gaussian_blur(x, 1 / 3)
    torch.testing.assert_close(found.flatten(), torch.stack([side, middle, side]))
    flat = torch.full((1, 2, 4, 5), 0.7, dtype=torch.float64)
    torch.testing.assert_close(tensors.gaussian_blur(flat, 2.5), flat)


def test_scaling_by_hand() -> None:
    maps = torch.tensor([[[-2.0, 0.0, 2.0]], [[5.0, 5.0, 5.0]], [[0.0, -1.0, -4.0]]])
    assert images.normalize(maps).tolist() == [[[0.0, 0.5, 1.0]], [[0.0, 0.0, 0.0]], [[1.0, 0.75, 0.0]]]
    assert images.normalize(maps, symmetric=True).tolist() == [[[0, 0.5, 1]], [[1, 1, 1]], [[0.5, 0.375, 0]]]
    assert images.normalize(torch.zeros(1, 2), symmetric=True).tolist() == [[0.5, 0.5]]
    assert images.normalize(maps, dims=3).tolist()[0][0] == pytest.approx([2 / 9, 4 / 9, 6 / 9])


def test_percentiles_by_hand() -> None:
    """Of 0 to 9 and 100, 90 % (ten of eleven) do not exceed 9, and as many are not below 1."""
    maps = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 100]])
    scaled = images.normalize(maps, percentile=90)[0]
    assert_close(scaled, ((maps[0] - 1) / 8).clamp(0, 1))
    scaled = images.normalize(-maps, symmetric=True, percentile=90)[0]
    assert_close(scaled, (0.5 - maps[0] / 18).clamp(0, 1))
    assert torch.equal(images.normalize(maps, percentile=100), images.normalize(maps))


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (torch.tensor([[0.0, torch.inf]]), {}, "maps should be finite, got NaN or infinity"),
        (torch.zeros(2, 0), {}, r"maps should have at least 2 dimensions and one value, got shape \[2, 0\]"),
        (torch.zeros(2), {}, r"maps should have at least 2 dimensions and one value, got shape \[2\]"),
        (torch.zeros(2, 2), {"percentile": 50}, "percentile should be above 50 and at most 100, got 50"),
        (torch.zeros(2, 2), {"percentile": 101}, "percentile should be above 50 and at most 100, got 101"),
    ],
)
def test_wrong_maps(maps: torch.Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images.normalize(maps, **options)


def test_grid_by_hand() -> None:
    pictures = torch.stack([torch.full((3, 1, 2), value) for value in (0.1, 0.2, 0.3)])
    sheet = images.grid(pictures, columns=2, padding=1, background=0.9)
    b = 0.9
    expected = [
        [b, b, b, b, b, b, b],
        [b, 0.1, 0.1, b, 0.2, 0.2, b],
        [b, b, b, b, b, b, b],
        [b, 0.3, 0.3, b, b, b, b],
        [b, b, b, b, b, b, b],
    ]
    assert_close(sheet, torch.tensor(expected).expand(3, 5, 7))
    assert images.grid(pictures, padding=0).shape == (3, 2, 4)
    assert images.grid(torch.zeros(5, 3, 2, 2), padding=0).shape == (3, 4, 6)
    assert images.grid(torch.zeros(1, 3, 2, 2, dtype=torch.float64)).dtype == torch.float64


def test_wrong_grids() -> None:
    with pytest.raises(ValueError, match="pictures should hold at least one picture, got none"):
        images.grid(torch.zeros(0, 3, 2, 2))
    with pytest.raises(ValueError, match=r"pictures should have shape \[N, C, H, W\], got \[3, 2, 2\]"):
        images.grid(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="columns should be at least 1, got 0"):
        images.grid(torch.zeros(2, 3, 2, 2), columns=0)
    with pytest.raises(ValueError, match="background should be 0 to 1, got 255"):
        images.grid(torch.zeros(2, 3, 2, 2), background=255)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "draw",
    [
        lambda x: images.preprocess(x, Preprocessing((9, 9), 12, (0.5,) * 3, (0.5,) * 3)),
        lambda x: images.restore(x, Preprocessing((9, 9), 12, (0.5,) * 3, (0.5,) * 3)),
        lambda x: images.colour_map(x, "inferno"),
        lambda x: images.normalize(x, percentile=90),
        lambda x: images.overlay(x, x[:, 0, ::2, ::2]),
        lambda x: images.grid(x),
    ],
)
def test_pictures_stay_on_their_device(draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.rand(3, 3, 16, 20)
    on_gpu = draw(x.cuda())
    assert on_gpu.is_cuda
    # One colour step apart where rounding falls on the other side.
    assert_close(on_gpu.cpu(), draw(x), rtol=0, atol=0.05)
