"""Codes of a layer that a target likes, and the images that have them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastviz as fv
from fastviz import models


def network(size: int = 16) -> nn.Sequential:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).double()  # fmt: skip
    models.describe(model, preprocessing=models.Preprocessing((size, size), size, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)))
    return model


def scores(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


def test_codes_that_a_class_likes():
    """Codes rise for their targets, stay 0 or more behind a rectifier, and the decoded images have them."""
    model = network()
    made = fv.maximize_code(model, torch.tensor([1, 3]), "3", starts=2, steps=30, goal=None, decoding={"steps": 60})
    assert made.codes.shape == (4, 6, 4, 4)
    assert bool((made.codes >= 0).all())
    assert bool((made.history[-1] > made.history[0]).all())
    index = torch.tensor([1, 1, 3, 3])
    with torch.no_grad():
        values = model[4:](made.codes)[torch.arange(4), index]
    torch.testing.assert_close(made.code_values, values)
    torch.testing.assert_close(made.values, scores(model, made.decoded.images)[torch.arange(4), index])
    torch.testing.assert_close(made.probability, scores(model, made.decoded.images).softmax(1)[torch.arange(4), index])
    assert made.decoded.layer == "3"
    assert "<img" in made._repr_html_()
    with pytest.raises(ValueError, match="has no gradient for it"):
        fv.maximize_code(model, fv.channel("0", 1), "3", steps=1)
