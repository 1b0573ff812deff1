"""Layers that are chosen where none are named, and their weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastviz as fv
from fastviz import models
from fastviz.engine.optimize.style_loss import layer_weights
from fastviz.engine.optimize.usual_layers import style_layers

LOOP = {"start", "canvas", "optimizer", "learning_rate", "preview", "preview_every", "checkpoint"}


def split(options: dict[str, object]) -> dict[str, object]:
    """Those of :class:`fastviz.Optimization` as one."""
    loop = {name: options[name] for name in LOOP & options.keys()}
    rest = {name: value for name, value in options.items() if name not in LOOP}
    return {**rest, "optimization": fv.Optimization(**loop)} if loop else rest


def style_transfer(*args: object, **options: object) -> fv.Styled:
    return fv.style_transfer(*args, **split(options))


def neural_texture(*args: object, **options: object) -> fv.Styled:
    return fv.neural_texture(*args, **split(options))


def described(model: nn.Module, channels: int = 3) -> nn.Module:
    """``model`` for pictures as they are."""
    settings = models.Preprocessing((16, 16), 16, (0.0,) * channels, (1.0,) * channels)
    models.describe(model, preprocessing=settings)
    return model


def small() -> nn.Module:
    """Two stages of convolutions in float64."""
    torch.manual_seed(3)
    return described(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True),
            nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 64, 2),
        ).double().eval()
    )  # fmt: skip


def test_layers_that_are_chosen():
    assert style_layers(small()) == (["3", "6"], ["3"])
    squeezenet = fv.load_model("squeezenet1_0")
    assert style_layers(squeezenet) == (["features.1", "features.3", "features.7", "features.12"], ["features.8"])
    style, content = style_layers(fv.load_model("resnet18"))
    assert style == ["relu", "layer1", "layer2", "layer3", "layer4"]
    assert content == ["layer3"]
    with pytest.raises(ValueError, match="layers should be named for this model, which has no maps"):
        style_layers(described(nn.Sequential(nn.Flatten(), nn.Linear(768, 2))))


def test_layer_weights():
    assert layer_weights(None, "layers", ["a", "b", "c", "d"]) == dict.fromkeys("abcd", 0.25)
    assert layer_weights("a", "layers", []) == {"a": 1.0}
    assert layer_weights({"a": 2, "b": 0}, "layers", []) == {"a": 2.0, "b": 0.0}
