"""Layers by name, and hooks that are gone behind the ``with``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastviz.execution.hooks import layer_module


def test_layer_module_names_the_nearest_layers() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(1, 1), nn.ReLU()))
    assert layer_module(model, "0.1") is model[0][1]
    assert layer_module(model, "") is model
    with pytest.raises(ValueError, match=r"layer '0.2' is not known; nearest: 0.1"):
        layer_module(model, "0.2")
    with pytest.raises(TypeError, match="layer should be a dotted module name, got int"):
        layer_module(model, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model should be a torch.nn.Module, got str"):
        layer_module("resnet50", "fc")  # type: ignore[arg-type]


def test_layers_of_a_compiled_model_keep_their_names() -> None:
    model = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(1, 1))))
    assert layer_module(model, "0.0") is layer_module(model, "0._orig_mod.0")
    assert isinstance(layer_module(model, "0.0"), nn.Linear)
