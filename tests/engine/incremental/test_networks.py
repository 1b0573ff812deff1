"""Eight architectures of torchvision with random weights: captum's numbers where it has the method, else the papers'.

captum's rules for rectifiers are hooks of ``nn.ReLU``, so it misses the functional ones of DenseNet, GoogLeNet and
Inception and the ReLU6 of MobileNet: there the rules are compared with backward functions written from the papers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastviz.methods.attribution.cam import cam
from fastviz.methods.attribution.grad_cam import grad_cam
from fastviz.methods.attribution.gradients import (
    deconvnet,
    gradient_times_input,
    guided_backprop,
    input_gradient,
    saliency,
)
from fastviz.targets.objectives import neuron

attr = pytest.importorskip("captum.attr")
torchvision = pytest.importorskip("torchvision")

pytestmark = pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks", "ignore:Input Tensor 0 did not")

# Name → the side of an image, as small as the network takes it; a layer near the input.
NETWORKS = {
    "alexnet": (64, "features.3"),
    "vgg16": (32, "features.7"),
    "squeezenet1_0": (48, "features.3.expand3x3"),
    "googlenet": (48, "conv3.conv"),
    "resnet50": (32, "layer1.0.conv3"),
    "densenet121": (32, "features.denseblock1.denselayer1"),
    "inception_v3": (75, "Conv2d_4a_3x3.conv"),
    "mobilenet_v2": (32, "features.3"),
}
IN_CAPTUM = ("alexnet", "vgg16", "squeezenet1_0", "resnet50")
WITH_CAM = ("googlenet", "resnet50", "densenet121", "inception_v3", "mobilenet_v2")

K = torch.tensor([3, 7])


def build(name: str) -> nn.Module:
    """The network with 10 classes and random weights in float64; narrow linear layers, which have most of them."""
    options = {
        "googlenet": {"aux_logits": False, "init_weights": False},
        "inception_v3": {"aux_logits": False, "init_weights": False},
    }
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=10, **options.get(name, {})).eval()
        if name in ("alexnet", "vgg16"):
            inputs = next(each.in_features for each in model.classifier if isinstance(each, nn.Linear))
            model.classifier = nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(inplace=True), nn.Linear(16, 10))
    model = model.to_empty(device="cpu").to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.dim() > 1:
                value.normal_(generator=generator).mul_((2 / value[0].numel()) ** 0.5)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.is_floating_point():
                value.normal_(generator=generator).mul_(0.1)
                if re.search(r"(bn|norm)\w*\.weight$", key):
                    value.add_(1)
    return model


@pytest.fixture(scope="module", params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def network(name: str) -> nn.Module:
    return build(name)


@pytest.fixture(scope="module")
def x(name: str) -> Tensor:
    side = NETWORKS[name][0]
    return torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def for_captum(network: nn.Module) -> nn.Module:
    """A copy whose rectifiers do not work in place; in a ResNet each is used once."""
    model = copy.deepcopy(network)
    for module in model.modules():
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            module.inplace = False
        if isinstance(module, torchvision.models.resnet.Bottleneck):
            module.relu1, module.relu2, module.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
            module.forward = _bottleneck.__get__(module)
    return model


def _bottleneck(self: Any, x: Tensor) -> Tensor:
    out = self.relu1(self.bn1(self.conv1(x)))
    out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
    return self.relu3(out + (x if self.downsample is None else self.downsample(x)))


def close(found: Tensor, expected: Tensor) -> None:
    """Equal up to float64 rounding, on the scale of the largest value."""
    expected = expected.detach()
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11 * scale)


def test_gradients_are_captums(network: nn.Module, for_captum: nn.Module, x: Tensor) -> None:
    gradient = attr.Saliency(for_captum).attribute(x.clone(), target=K, abs=False)
    close(input_gradient(network, x, K), gradient)
    close(saliency(network, x, K, batch_size=1), gradient.abs().amax(1))
    close(gradient_times_input(network, x, K), attr.InputXGradient(for_captum).attribute(x.clone(), target=K))


class _Rule(torch.autograd.Function):
    """The backward rules as the papers write them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: str) -> Tensor:
        ctx.active, ctx.rule = x > 0, rule
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        R = grads[0]
        return R * (R > 0) * (ctx.active if ctx.rule == "guided" else 1), None


@pytest.mark.parametrize(
    ("method", "rule", "theirs"),
    [(guided_backprop, "guided", "GuidedBackprop"), (deconvnet, "deconvnet", "Deconvolution")],
)
def test_rules_are_those_of_the_papers(
    method: Callable[..., Tensor],
    rule: str,
    theirs: str,
    name: str,
    network: nn.Module,
    for_captum: nn.Module,
    x: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = method(network, x, K)
    if name in IN_CAPTUM:
        close(found, getattr(attr, theirs)(for_captum).attribute(x.clone(), target=K))
    hardtanh = F.hardtanh
    monkeypatch.setattr(F, "relu", lambda value, inplace=False: _Rule.apply(value, rule))
    monkeypatch.setattr(F, "hardtanh", lambda value, low, high, inplace: hardtanh(_Rule.apply(value, rule), -1, high))
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(leaf).gather(1, K[:, None]).sum(), leaf)
    close(found, expected)


def test_a_unit_on_its_crop_is_captums(name: str, network: nn.Module, for_captum: nn.Module, x: Tensor) -> None:
    layer = NETWORKS[name][1]
    found = input_gradient(network, x, [neuron(layer, 1), neuron(layer, 0, (0, 2))])
    theirs = attr.NeuronGradient(for_captum, for_captum.get_submodule(layer))
    close(found[:, 0], theirs.attribute(x.clone(), lambda maps: maps[:, 1, maps.shape[2] // 2, maps.shape[3] // 2]))
    close(found[:, 1], theirs.attribute(x.clone(), (0, 0, 2)))
    assert (found[:, 1] == 0).double().mean() > 0.2


def test_maps_are_captums(name: str, network: nn.Module, for_captum: nn.Module, x: Tensor) -> None:
    layer = NETWORKS[name][1]
    theirs = attr.LayerGradCam(for_captum, for_captum.get_submodule(layer))
    close(grad_cam(network, x, K, layer=layer), theirs.attribute(x.clone(), target=K, relu_attributions=True)[:, 0])


def test_cam_or_why_not(name: str, network: nn.Module, x: Tensor) -> None:
    """The mean of a map is the score less the bias; the last maps of these small images have more than one place."""
    large = F.interpolate(x, scale_factor=2 if name != "inception_v3" else 1.5)
    if name not in WITH_CAM:
        with pytest.raises(ValueError, match="model should end in a global average of its last maps"):
            cam(network, large, K)
        return
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    scores = network(large).gather(1, K[:, None])[:, 0] - linear.bias[K]
    close(cam(network, large, K).mean((1, 2)), scores)
