"""Methods of a job that share a pass give what each gives alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastviz.jobs.one_pass import OnePass
from fastviz.methods.registry import EXPLAINERS

GRADIENTS = ("saliency", "input_gradient", "gradient_times_input")
CAMS = ("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "layer_cam", "hires_cam", "element_wise_cam", "eigen_grad_cam")


def network(*more: nn.Module) -> nn.Sequential:
    """A small classifier, whose rectifiers work in place on what the layer before gave."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(inplace=True), *more),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    ).eval()


def shared(model: nn.Module, *names: str, **options: Any) -> OnePass:
    return OnePass(model, {name: options.get(name, {}) for name in names}, torch.zeros(1, 3, 12, 16))


def check(model: nn.Module, one_pass: OnePass, x: Tensor, target: int | None, layer: str | None = None) -> None:
    found = one_pass(x, target)
    assert found is not None
    scores, maps = found
    with torch.no_grad():
        torch.testing.assert_close(scores, torch.cat([model(each[None]) for each in x]), atol=1e-5, rtol=1e-4)
    assert list(maps)
    assert set(maps) == set(one_pass.methods)
    for name, found in maps.items():
        more = {"layer": layer} if layer and name in CAMS else {}
        alone = EXPLAINERS[name].function(model, x, target, **more)
        torch.testing.assert_close(found, alone, atol=1e-5 * float(alone.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("target", [None, 3])
@pytest.mark.parametrize("names", [(*GRADIENTS, *CAMS), CAMS, GRADIENTS, ("guided_backprop",)])
def test_maps_and_scores_are_those_of_each_alone(names: tuple[str, ...], target: int | None) -> None:
    model = network()
    passes: list[int] = []
    one_pass = shared(model, *names)
    assert one_pass.methods == list(names)
    x = torch.randn(5, 3, 12, 16)
    counted = model.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    one_pass(x, target)
    counted.remove()
    assert passes == [5]
    check(model, one_pass, x, target)


def test_more_images_than_a_pass_takes() -> None:
    model = network()
    check(model, shared(model, "saliency", "grad_cam"), torch.randn(70, 3, 12, 16), None)


class CentredBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_a_model_that_mixes_images_gets_each_alone() -> None:
    model = network(CentredBatch(), nn.Conv2d(6, 6, 1))
    x = torch.randn(3, 3, 12, 16)
    maps = shared(model, "saliency", "layer_cam")(x, 1)
    each = [shared(model, "saliency", "layer_cam")(image[None], 1) for image in x.unbind()]
    assert maps is not None
    for name in maps[1]:
        torch.testing.assert_close(maps[1][name], torch.cat([one[1][name] for one in each if one is not None]))


def test_methods_with_options_of_their_own_run_on_their_own() -> None:
    model = network()
    options = {"grad_cam": {"layer": "0"}, "layer_cam": {"layer": "4"}, "saliency": {"precision": "bfloat16"}}
    one_pass = shared(model, "grad_cam", "layer_cam", "saliency", "input_gradient", **options)
    assert one_pass.methods == ["grad_cam", "input_gradient"]
    check(model, one_pass, torch.randn(2, 3, 12, 16), 2, layer="0")
    assert shared(model, "grad_cam", grad_cam={"size": (12, 16)}).methods == []


def test_what_cannot_run_leaves_the_error_to_each_method() -> None:
    one_pass = shared(network(), "saliency", "grad_cam")
    assert one_pass(torch.randn(2, 4, 12, 16), None) is None
    assert one_pass(torch.randn(2, 3, 12, 16), 7) is None  # no such class


def test_a_layer_without_maps_is_not_shared() -> None:
    tokens = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Flatten(2), nn.Linear(12, 2), nn.Flatten(), nn.Linear(8, 3))
    assert shared(tokens.eval(), "saliency", "grad_cam", grad_cam={"layer": "2"}).methods == ["saliency"]
