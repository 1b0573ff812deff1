"""RISE: its formula, its masks, and stopping before all masks have been tried."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fastviz as fv
from fastviz.engine.masking.masked_mean import MaskedMean
from fastviz.engine.masking.random_masks import RandomMasks, random_masks
from fastviz.vectors.ranks import correlation, ranks


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(96, 5)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_masks_are_enlarged_grids_cut_out() -> None:
    """As the authors' code makes them: resized to (cells + 1) cells a side, and cropped."""
    masks = random_masks(5, (20, 17), 4, 0.5, torch.Generator().manual_seed(2))
    found = masks.of(torch.arange(5))
    cell = (5, 5)
    for number in range(5):
        top, left = masks.shifts[number].tolist()
        assert 0 <= top < cell[0]
        assert 0 <= left < cell[1]
        enlarged = functional.interpolate(masks.grids[number][None, None], (25, 25), mode="bilinear")[0, 0]
        torch.testing.assert_close(found[number], enlarged[top : top + 20, left : left + 17])
    torch.testing.assert_close(masks.of(torch.arange(5), 3), found[:, ::3, ::3])


def test_a_mask_by_hand() -> None:
    """Two cells over four pixels, enlarged to six: centres at pixels 1 and 4, straight between them."""
    masks = RandomMasks(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), torch.tensor([[0, 1]]), (4, 4))
    expected = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0])
    torch.testing.assert_close(masks.of(torch.tensor([0]))[0], expected.expand(4, 4))


def test_the_formula(model: nn.Module, x: Tensor) -> None:
    found = fv.rise(model, x, [1, fv.class_score(2)], masks=30, cells=4, keep=0.4, fill=0.3, seed=7, batch_size=8)
    masks = random_masks(30, (16, 16), 4, 0.4, torch.Generator().manual_seed(7)).of(torch.arange(30))
    for number in range(2):
        pictures = x[number] * masks[:, None] + 0.3 * (1 - masks[:, None])
        scores = model(pictures).detach()
        for column, value in enumerate((scores.softmax(1)[:, 1], scores[:, 2])):
            expected = (value[:, None, None] * masks).sum(0) / (30 * 0.4)
            torch.testing.assert_close(found.attribution[number, column], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.baseline[:, 0], model(x).softmax(1)[:, 1].detach())
    assert found.stats["masks"] == [30, 30]


def test_the_predicted_class_stands_for_its_probability(model: nn.Module, x: Tensor) -> None:
    classes = model(x).argmax(1)
    expected = fv.rise(model, x, classes, masks=10).attribution
    torch.testing.assert_close(fv.rise(model, x, masks=10).attribution, expected)
    given = fv.rise(model, x, torch.stack([classes, classes], 1), masks=10).attribution
    torch.testing.assert_close(given[:, 1], expected)


def test_stopping_is_near_the_map_of_all_masks(model: nn.Module, x: Tensor) -> None:
    whole = fv.rise(model, x, 1, masks=2000)
    early = fv.rise(model, x, 1, masks=2000, stop=0.98)
    assert max(early.stats["masks"]) < 2000
    near = correlation(ranks(whole.attribution.flatten(1)), ranks(early.attribution.flatten(1)))
    assert bool((near > 0.97).all())
    assert min(early.stats["agreement"]) >= 0.98


def test_all_masks_give_the_mean_itself_and_few_an_estimate_of_it() -> None:
    masks = random_masks(400, (16, 16), 4, 0.5, torch.Generator().manual_seed(0))
    mean = MaskedMean(masks, 0.5)
    every = masks.of(torch.arange(400))
    values = (3 + every[:, 4:8, 4:8].mean((1, 2)) * 2)[:, None]
    expected = (values[:, :, None] * every).sum(0) / 200
    torch.testing.assert_close(mean.maps(mean.weights(values))[0], expected.double(), rtol=1e-5, atol=1e-5)
    # what is linear in the mask is known from half of the masks
    torch.testing.assert_close(mean.maps(mean.weights(values[:200]))[0], expected.double(), rtol=5e-3, atol=5e-3)
    assert mean.agreement(values) == 1.0
    assert mean.agreement(values[:200]) > 0.95
    noise = torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    assert mean.agreement(noise[:50]) < 0.8


def test_no_images(model: nn.Module, x: Tensor) -> None:
    found = fv.rise(model, x[:0], [1, 2], masks=3)
    assert found.attribution.shape == (0, 2, 16, 16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"masks": 0}, "masks should be at least 1"),
        ({"cells": 1}, "cells should be at least 2"),
        ({"keep": 1.0}, "keep should be above 0 and below 1"),
        ({"stop": 1.5}, "stop should be above 0 and below 1"),
        ({"seed": -1}, "seed should be at least 0"),
        ({"batch_size": 0}, "batch_size should be at least 1"),
        ({"fill": torch.zeros(7)}, "fill should have shape"),
    ],
)
def test_bad_arguments(model: nn.Module, x: Tensor, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fv.rise(model, x, 1, **options)  # type: ignore[arg-type]
