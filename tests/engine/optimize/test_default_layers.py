"""Layers that are chosen where none are named, and their weights."""

from __future__ import annotations

import pytest
from torch import nn

import fastviz as fv
from fastviz.engine.optimize.default_layers import style_layers
from fastviz.engine.optimize.style_loss import layer_weights
from tests.methods.synthesis.style_common import described, small


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
