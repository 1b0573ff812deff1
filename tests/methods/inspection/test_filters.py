"""Filters as tensors and as a picture."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import fastviz as fv


def convolution(weight: torch.Tensor, **options) -> nn.Sequential:
    """A network whose only layer, ``"0"``, is a convolution with this weight [K, C, h, w]."""
    layer = nn.Conv2d(weight.shape[1] * options.get("groups", 1), len(weight), weight.shape[2:], **options)
    layer.weight = nn.Parameter(weight)
    return nn.Sequential(layer)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- scaling


def test_each_filter_is_scaled_about_zero():
    """The first filter's largest magnitude is 4, the second's 1."""
    model = convolution(torch.tensor([[[[-4.0, 2.0]]], [[[1.0, 0.0]]]]))
    assert fv.filters(model).flatten(1).tolist() == [[0.0, 0.75], [1.0, 0.5]]
    assert fv.filters(model, "0", scale="together").flatten(1).tolist() == [[0.0, 0.75], [0.625, 0.5]]
    assert fv.filters(model, scale=None).flatten(1).tolist() == [[-4.0, 2.0], [1.0, 0.0]]


def test_a_filter_keeps_the_proportions_of_its_channels():
    """Channels of one filter have one scale: red 3, green -1, blue 0."""
    model = convolution(torch.tensor([3.0, -1.0, 0.0]).view(1, 3, 1, 1))
    torch.testing.assert_close(fv.filters(model).flatten(), torch.tensor([1.0, 1 / 3, 0.5]))


def test_the_model_keeps_its_weights():
    model = convolution(random(4, 3, 5, 5))
    before = model[0].weight.detach().clone()
    fv.filters(model, scale=None).zero_()
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype(dtype):
    found = fv.filters(convolution(random(4, 3, 5, 5)).to(dtype), unit_norm=True)
    assert found.dtype == dtype
    assert found.amin() >= 0


def test_the_unit_norm_input_excites_a_filter_most():
    weight = random(506, 3, 5, 5)[500:]
    best = fv.filters(convolution(weight), scale=None, unit_norm=True)
    torch.testing.assert_close(best.flatten(1).norm(dim=1), torch.ones(6, dtype=torch.float64))
    answers = functional.conv2d(best, weight).flatten(1)
    others = functional.normalize(random(500, 3, 5, 5).flatten(1)).view(-1, 3, 5, 5)
    assert (functional.conv2d(others, weight).flatten(1).amax(0) < answers.diagonal()).all()


def test_a_filter_of_zeros():
    model = convolution(torch.zeros(2, 3, 3, 3))
    assert (fv.filters(model, unit_norm=True) == 0.5).all()
    assert not fv.filters(model, scale=None, unit_norm=True).any()


# -------------------------------------------------------------------------------------------------------- layers


def test_the_first_convolution_is_the_default():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.Conv2d(3, 7, 5)), nn.Conv2d(7, 9, 3))
    assert fv.filters(model).shape == (7, 3, 5, 5)
    assert fv.filters(model, "2").shape == (9, 7, 3, 3)


def test_groups():
    model = convolution(random(6, 2, 3, 3), groups=3)
    torch.testing.assert_close(fv.filters(model, scale=None), model[0].weight.detach())


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution(groups):
    """Filter k, channel c is what a one in input channel c adds to output channel k."""
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False).double()
    found = fv.filters(nn.Sequential(layer), scale=None)
    assert found.shape == (6, 4 // groups, 3, 3)
    for channel in range(4):
        one = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
        one[0, channel] = 1
        answer = layer(one)[0].detach()
        outputs = slice(None) if groups == 1 else slice(3 * (channel // 2), 3 * (channel // 2) + 3)
        torch.testing.assert_close(found[outputs, channel % (4 // groups)], answer[outputs])


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("fc", r"layer 'fc' should be a 2-d convolution, got Linear"),
        ("wave", r"layer 'wave' should be a 2-d convolution, got Conv1d"),
        ("convv", r"layer 'convv' is not known; nearest: conv"),
        ("lazy", r"layer 'lazy' has no weights before its first forward pass"),
        ("nan", r"layer 'nan' should have finite weights, got NaN or infinity"),
    ],
)
def test_layers_without_filters(layer, words):
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "fc": nn.Linear(3, 3), "wave": nn.Conv1d(3, 3, 3)})
    model["lazy"], model["nan"] = nn.LazyConv2d(3, 3), convolution(torch.full((1, 1, 1, 1), torch.nan))[0]
    with pytest.raises(ValueError, match=words):
        fv.filters(model, layer)


def test_refuses():
    with pytest.raises(ValueError, match="model should have a 2-d convolution, and has none"):
        fv.filters(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="scale should be one of 'each', 'together', got 'all'"):
        fv.filters(nn.Conv2d(3, 3, 3), scale="all")
    with pytest.raises(TypeError, match=r"model should be a torch\.nn\.Module, got Tensor"):
        fv.filters(torch.zeros(3, 3, 3, 3))


# ------------------------------------------------------------------------------------------------------ pictures


def test_a_grid_of_colour_filters():
    """Five of 2x2 weights at 3 pixels a weight: rows of three, a pixel between."""
    filters = torch.rand(5, 3, 2, 2)
    grid = fv.filter_grid(filters, magnify=3)
    assert grid.shape == (3, 1 + 2 * 7, 1 + 3 * 7)
    assert torch.equal(grid[:, 8:14, 8:14], filters[4].repeat_interleave(3, 1).repeat_interleave(3, 2))
    assert (grid[:, 8:14, 15:21] == 1).all()  # the place of the sixth


def test_a_grid_of_grey_filters_has_one_row_per_filter():
    filters = torch.rand(2, 4, 3, 3)
    grid = fv.filter_grid(filters, magnify=1)
    assert grid.shape == (3, 1 + 2 * 4, 1 + 4 * 4)
    for k in range(2):
        for c in range(4):
            tile = grid[:, 1 + 4 * k : 4 + 4 * k, 1 + 4 * c : 4 + 4 * c]
            assert torch.equal(tile, filters[k, c].expand(3, -1, -1))


def test_grids_of_any_layer_can_be_looked_at():
    assert fv.filter_grid(torch.rand(9, 1, 5, 5)).shape[1] == fv.filter_grid(torch.rand(9, 1, 5, 5)).shape[2]
    for shape in ((64, 3, 7, 7), (64, 3, 11, 11), (20, 16, 7, 7), (16, 96, 1, 1), (512, 512, 3, 3)):
        width = fv.filter_grid(torch.zeros(1, 1, 1, 1).expand(shape)).shape[2]
        assert 150 <= width <= 2200, shape


def test_a_grid_refuses():
    with pytest.raises(ValueError, match="filters should have values 0 to 1, got -1 to 2"):
        fv.filter_grid(torch.tensor([[[[-1.0, 2.0]]]]))
    with pytest.raises(ValueError, match="magnify should be at least 1, got 0"):
        fv.filter_grid(torch.zeros(1, 3, 2, 2), magnify=0)
