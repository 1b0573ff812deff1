"""Colour maps, scaling, overlays and grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fastviz import images
from fastviz.models.descriptions import Preprocessing

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(*rows: tuple[tuple[int, int, int], ...]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def bytes_of(tensor: torch.Tensor) -> list[Any]:
    """[3, H, W] in 0 to 1 as rows of (red, green, blue) in 0 to 255, as a person writes them."""
    return [[tuple(pixel) for pixel in row] for row in (tensor * 255).round().int().permute(1, 2, 0).tolist()]


@pytest.mark.parametrize("name", ["viridis", "inferno", "jet", "grey", "seismic"])
def test_colours_are_matplotlibs(name: Any) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    values = torch.rand(2, 30, 40)
    values[0, 0] = torch.linspace(0, 1, 40)
    expected = matplotlib.colormaps["gray" if name == "grey" else name](values.numpy())[..., :3]
    ours = images.colour_map(values, name)
    assert ours.shape == (2, 3, 30, 40)
    assert_close(ours, torch.from_numpy(expected).movedim(-1, 1).float(), rtol=0, atol=0.5 / 255 + 1e-6)


def test_colours_by_hand() -> None:
    ends = torch.tensor([[0.0, 0.5, 1.0]])
    assert bytes_of(images.colour_map(ends, "grey")) == [[(0, 0, 0), (128, 128, 128), WHITE]]
    assert bytes_of(images.colour_map(ends, "jet")) == [[(0, 0, 128), (125, 255, 122), (128, 0, 0)]]
    assert bytes_of(images.colour_map(ends, "viridis")) == [[(68, 1, 84), (33, 145, 140), (253, 231, 37)]]
    assert images.colour_map(ends.double(), "inferno").dtype == torch.float64


def test_wrong_values_for_colours() -> None:
    with pytest.raises(ValueError, match=r"values should have values 0 to 1, got -1 to 2"):
        images.colour_map(torch.tensor([[-1.0, 2.0]]))
    with pytest.raises(ValueError, match=r"values should have shape \[..., H, W\], got \[3\]"):
        images.colour_map(torch.zeros(3))
    with pytest.raises(ValueError, match=r"name should be one of 'viridis', 'inferno', .*got 'rainbow'"):
        images.colour_map(torch.zeros(2, 2), "rainbow")  # type: ignore[arg-type]


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


def test_overlays_by_hand() -> None:
    image = torch.full((1, 3, 2, 4), 0.5)
    heat = torch.tensor([[[0.0, 1.0]]])
    over = images.overlay(image, heat, alpha=0.25, name="grey")
    # Two values over four pixels: bilinear at 1/4 and 3/4 between the centres, in 256 steps.
    expected = 0.75 * 0.5 + 0.25 * torch.tensor([0.0, 64 / 255, 192 / 255, 1.0])
    assert_close(over, expected.expand(1, 3, 2, 4))
    assert torch.equal(images.overlay(image, heat, alpha=0.0), image)
    assert torch.equal(images.overlay(image, heat.expand(1, 2, 2)[..., [0, 0, 1, 1]], alpha=1.0),
                       images.colour_map(heat.expand(1, 2, 2)[..., [0, 0, 1, 1]], "jet"))  # fmt: skip


def test_wrong_overlays() -> None:
    image, heat = torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 2)
    with pytest.raises(ValueError, match=r"image should have values 0 to 1, got -3 to -3"):
        images.overlay(image - 3, heat)
    with pytest.raises(ValueError, match=r"heat should have values 0 to 1, got 5 to 5"):
        images.overlay(image, heat + 5)
    with pytest.raises(ValueError, match="heat should have 2 maps, one an image, got 1"):
        images.overlay(image, heat[:1])
    with pytest.raises(ValueError, match=r"image should have shape \[N, 3, H, W\], got \[2, 1, 4, 4\]"):
        images.overlay(image[:, :1], heat)
    with pytest.raises(ValueError, match="alpha should be 0 to 1, got 2"):
        images.overlay(image, heat, alpha=2)


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
    with pytest.raises(ValueError, match=r"pictures should have shape \[N, 3, H, W\], got \[2, 1, 2, 2\]"):
        images.grid(torch.zeros(2, 1, 2, 2))
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
