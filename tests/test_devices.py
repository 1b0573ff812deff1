"""Devices that torch has and fastviz does not compute on: ``meta`` stands for them, as mps and xpu are rarely there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz.incremental import sweep

CALLS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "activations": lambda model, x: fv.activations(model, x, ["0"]),
    "cam": lambda model, x: fv.cam(model, x),
    "deep_dream": lambda model, x: fv.deep_dream(model, x, "0"),
    "embedding": lambda model, x: fv.embedding(model, x, layer="0"),
    "evolve": lambda model, x: fv.evolve(model, 0),
    "filters": lambda model, x: fv.filters(model),
    "fool": lambda model, x: fv.fool(model, x, 1),
    "grad_cam": lambda model, x: fv.grad_cam(model, x, layer="0"),
    "guided_backprop": lambda model, x: fv.guided_backprop(model, x),
    "invert": lambda model, x: fv.invert(model, x, layer="0"),
    "maximize": lambda model, x: fv.maximize(model, 0),
    "neural_texture": lambda model, x: fv.neural_texture(model, x[:1]),
    "occlusion": lambda model, x: fv.occlusion(model, x, 1),
    "patches": lambda model, x: fv.patches(model, x, layers=["0"]),
    "saliency": lambda model, x: fv.saliency(model, x, 1),
    "segment": lambda model, x: fv.segment(model, x),
    "style_transfer": lambda model, x: fv.style_transfer(model, x, x),
    "sweep": lambda model, x: sweep(model, x[:1], torch.tensor([[0, 0, 2, 2]])),
}


@pytest.mark.parametrize("x_too", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_a_model_elsewhere_is_refused_by_every_method(name: str, x_too: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to("meta")
    x = torch.rand(2, 3, 16, 16, device="meta" if x_too else "cpu")
    with pytest.raises(ValueError, match="(model|x) should be on a device of type cpu or cuda, got 'meta'"):
        CALLS[name](model, x)


def test_images_elsewhere_are_refused() -> None:
    x = torch.rand(2, 3, 16, 16, device="meta")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    without_weights = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    refused = "should be on a device of type cpu or cuda, got 'meta'"
    with pytest.raises(ValueError, match="x should be on the device of the model, cpu, got meta"):
        fv.occlusion(model, x, 1)
    for call, argument in (
        (lambda: fv.saliency(without_weights, x, 1), "x"),
        (lambda: fv.batches(x), "source"),
        (lambda: fv.batches(x.to(torch.uint8)), "source"),
        (lambda: fv.batches(torch.rand(2, 3, 8, 8), device="meta"), "device"),
        (lambda: fv.activations(model, torch.rand(1, 3, 8, 8), ["0"], device="meta"), "device"),
        (lambda: fv.maximize(model, 0, start=x[:1], size=16), "start"),
        (lambda: fv.synthesize_texture(x[0], 16), "sample"),
        (lambda: fv.fill_hole(x[0], torch.ones(16, 16, dtype=torch.bool)), "image"),
    ):
        with pytest.raises(ValueError, match=f"{argument} {refused}"):
            call()
