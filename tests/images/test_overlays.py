"""Colour maps, and maps over their images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from fastviz import images

WHITE = (255, 255, 255)


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
    with pytest.raises(ValueError, match="heat should have 2 maps, one per image, got 1"):
        images.overlay(image, heat[:1])
    with pytest.raises(ValueError, match=r"image should have shape \[N, C, H, W\], got \[3, 4, 4\]"):
        images.overlay(image[0], heat)
    with pytest.raises(ValueError, match="alpha should be 0 to 1, got 2"):
        images.overlay(image, heat, alpha=2)


def test_overlays_of_other_channels() -> None:
    """One channel is shown as grey, of four the first three."""
    heat, image = torch.rand(2, 3, 3), torch.rand(2, 4, 6, 5)
    grey = image[:, :1]
    assert_close(images.overlay(grey, heat), images.overlay(grey.expand(2, 3, 6, 5), heat), rtol=0, atol=0)
    assert_close(images.overlay(image, heat), images.overlay(image[:, :3], heat), rtol=0, atol=0)
