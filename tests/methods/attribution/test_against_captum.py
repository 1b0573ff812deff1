"""The same numbers as captum on a real network and real photographs.

captum needs rectifiers that are modules and do not work in place, so it gets a copy of the network without in-place
ones; fastviz gets the network as torchvision makes it.

Gradients are compared in float64, to 1e-9 of the largest: there they are equal to 1e-15. In float32 sums in another
order, which each processor and number of threads has its own of, take some inputs of rectifiers over zero and choose
other maxima of poolings, so that 0.1 to 0.3 % of the values differ by up to 1e-3 of the largest; that is bounded, too.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastviz.methods.attribution.grad_cam import grad_cam, guided_grad_cam
from fastviz.methods.attribution.gradients import (
    deconvnet,
    gradient_times_input,
    guided_backprop,
    input_gradient,
    saliency,
)
from fastviz.methods.attribution.occlusion import occlusion
from fastviz.targets.objectives import channel, neuron

attr = pytest.importorskip("captum.attr")
torchvision = pytest.importorskip("torchvision")

pytestmark = pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks", "ignore:Input Tensor 0 did not")

PHOTOS = ("tabby.jpg", "espresso.jpg", "african_elephant.jpg")


@pytest.fixture(scope="module")
def network(shared: Path) -> nn.Module:
    from safetensors.torch import load_file

    model = torchvision.models.squeezenet1_0()
    model.load_state_dict(load_file(shared / "models" / "squeezenet1_0_imagenet.safetensors"))
    return model.eval()


@pytest.fixture(scope="module")
def precise(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).double()


@pytest.fixture(scope="module")
def x(shared: Path) -> Tensor:
    from PIL import Image
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    return torch.stack([prepare(Image.open(shared / "images" / name).convert("RGB")) for name in PHOTOS])


@pytest.fixture(scope="module")
def target(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x).argmax(1)


def for_captum(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def close(found: Tensor, expected: Tensor) -> None:
    """Equal up to rounding of sums, on the scale of the largest value."""
    expected = expected.detach()
    assert expected.abs().max() > 0
    rtol, atol = (1e-9, 1e-9) if expected.dtype == torch.float64 else (1e-4, 1e-5)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol * float(expected.abs().max()))


def mostly_close(found: Tensor, expected: Tensor) -> None:
    """The same for gradients in float32: 1 % of the values may differ by up to 1 % of the largest."""
    largest = expected.abs().max()
    difference = (found - expected.detach()).abs()
    assert largest > 0
    assert difference.max() <= 1e-2 * largest
    assert (difference > 1e-5 * largest + 1e-4 * expected.abs()).double().mean() <= 1e-2


@pytest.mark.parametrize(
    ("ours", "name"),
    [(input_gradient, "Saliency"), (guided_backprop, "GuidedBackprop"), (deconvnet, "Deconvolution")],
)
def test_gradients(
    network: nn.Module, precise: nn.Module, x: Tensor, target: Tensor, ours: Callable[..., Tensor], name: str
) -> None:
    theirs: Any = getattr(attr, name)(for_captum(precise))
    options = {"abs": False} if name == "Saliency" else {}
    expected = theirs.attribute(x.double(), target=target, **options)
    close(ours(precise, x.double(), target), expected)
    close(ours(precise, x.double()), expected)
    mostly_close(ours(network, x, target), expected.float())


def test_saliency_and_gradient_times_input(precise: nn.Module, x: Tensor, target: Tensor) -> None:
    network, x = precise, x.double()
    model = for_captum(network)
    close(saliency(network, x, target), attr.Saliency(model).attribute(x.clone(), target=target).amax(1))
    close(gradient_times_input(network, x, target), attr.InputXGradient(model).attribute(x.clone(), target=target))


def test_single_units(precise: nn.Module, x: Tensor) -> None:
    network, x = precise, x[:1].double()
    unit, layer = neuron("features.7.expand3x3", 5, (20, 11)), "features.7.expand3x3"
    model = for_captum(network)
    module = model.get_submodule(layer)
    for ours, name in (
        (input_gradient, "NeuronGradient"),
        (guided_backprop, "NeuronGuidedBackprop"),
        (deconvnet, "NeuronDeconvolution"),
    ):
        theirs = getattr(attr, name)(model, module)
        close(ours(network, x, unit), theirs.attribute(x.clone(), (5, 20, 11)))
        whole = theirs.attribute(x.clone(), lambda maps: maps[:, 5].sum((1, 2)))
        close(ours(network, x, channel(layer, 5)), whole)


@pytest.mark.parametrize("layer", ["features.12", "features.9.expand1x1", "classifier.1"])
def test_grad_cam(network: nn.Module, x: Tensor, target: Tensor, layer: str) -> None:
    """classifier.1 is followed by an in-place rectifier in torchvision's network."""
    model = for_captum(network)
    theirs = attr.LayerGradCam(model, model.get_submodule(layer))
    expected = theirs.attribute(x.clone(), target=target, relu_attributions=True)[:, 0]
    close(grad_cam(network, x, target, layer=layer), expected)


def test_guided_grad_cam(precise: nn.Module, x: Tensor, target: Tensor) -> None:
    """captum resizes to the nearest value unless told otherwise; the paper, and fastviz, bilinearly."""
    network, x = precise, x.double()
    model = for_captum(network)
    theirs = attr.GuidedGradCam(model, model.features[12])
    expected = theirs.attribute(x.clone(), target=target, interpolate_mode="bilinear")
    close(guided_grad_cam(network, x, target, layer="features.12"), expected)


@pytest.mark.parametrize(
    ("count", "window", "stride", "fill"),
    [(1, (32, 32), (32, 32), 0.0), (2, (64, 80), (60, 70), 0.5), (2, (90, 64), (70, 64), "blur")],
)
def test_occlusion(
    network: nn.Module,
    x: Tensor,
    target: Tensor,
    count: int,
    window: tuple[int, int],
    stride: tuple[int, int],
    fill: Any,
) -> None:
    """Windows that divide the image, windows that the border cuts off, an image for the cover."""
    images, k = x[:count], target[:count]
    if fill == "blur":
        fill = F.avg_pool2d(images, 15, stride=1, padding=7)
    expected = attr.Occlusion(network).attribute(
        images, (3, *window), (3, *stride), baselines=fill, target=k, perturbations_per_eval=8
    )
    found = occlusion(network, images, k, window=window, stride=stride, fill=fill, batch_size=16)
    assert torch.equal(expected[:, 0], expected[:, 1])
    close(found.attribution, expected[:, 0])


def test_nothing_is_left_on_the_network(network: nn.Module, x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guided_backprop(network, x[:1])
        grad_cam(network, x[:1])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert all(module.inplace for module in network.modules() if isinstance(module, nn.ReLU))
