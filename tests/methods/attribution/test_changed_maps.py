"""Ablation-CAM and Recipro-CAM: by hand, by definition, pytorch-grad-cam; only what follows the layer is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz.images import tensors

f64 = torch.float64


class Net(nn.Module):
    """A shortcut around the second convolution, joined maps, and rectifiers that work in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(12, 7, 3)
        self.relu, self.fc, self.calls = nn.ReLU(inplace=True), nn.Linear(7, 5), 0
        self.conv1.register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.calls += len(output)

    def forward(self, x: Tensor) -> Tensor:
        first = self.relu(self.conv1(x))
        second = self.relu(self.conv2(first))
        second = second + first
        return self.fc(self.relu(self.conv3(torch.cat([first, second], 1))).mean((2, 3)))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net().to(f64).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 9, 8, dtype=f64, generator=torch.Generator().manual_seed(1))


def score_with(model: nn.Module, layer: str, image: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The scores with changed maps, by a hook."""
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: change(output.clone()))
    with torch.no_grad():
        scores: Tensor = model(image)[0]
    handle.remove()
    return scores


def ablated(model: nn.Module, layer: str, image: Tensor, k: int) -> Tensor:
    maps: list[Tensor] = []
    score_with(model, layer, image, lambda output: maps.append(output.clone()) or output)  # type: ignore[func-returns-value]
    before = score_with(model, layer, image, lambda output: output)[k]
    total = torch.zeros_like(maps[0][0, 0])
    for channel in range(maps[0].shape[1]):

        def without(output: Tensor, channel: int = channel) -> Tensor:
            output[:, channel] = 0
            return output

        after = score_with(model, layer, image, without)[k]
        total += (before - after) / before * maps[0][0, channel]
    return total.relu()


@pytest.mark.parametrize("batch_size", [None, 1, 4])
@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3"])
def test_ablation_by_definition(model: Net, x: Tensor, layer: str, batch_size: int | None) -> None:
    found = fv.ablation_cam(model, x, [3, 1], layer=layer, batch_size=batch_size)
    for n in range(2):
        for t, k in enumerate((3, 1)):
            torch.testing.assert_close(found[n, t], ablated(model, layer, x[n : n + 1], k))


def test_ablation_by_hand() -> None:
    """Score 2·mean(A_0) − mean(A_1) = 2·2 − 1 = 3: without A_0 it is −1, without A_1 4."""
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[3].weight.copy_(torch.tensor([[2.0, -1.0]]))
    x = torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]])
    expected = torch.tensor([[[4 / 3 * 1 - 1 / 3 * 2, 4 / 3 * 3]]])
    torch.testing.assert_close(fv.ablation_cam(model, x, 0, layer="0"), expected)


def test_recipro_by_hand() -> None:
    """One place alone gives its value over 3; with the Gaussian, its neighbours count half as much."""
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1, bias=False))
    nn.init.ones_(model[3].weight)
    x = torch.tensor([[[[3.0, 6.0, 12.0]]]])
    torch.testing.assert_close(
        fv.recipro_cam(model, x, 0, layer="0", gaussian=False), torch.tensor([[[0.0, 1.0, 3.0]]])
    )
    smooth = torch.tensor([3 / 4 + 6 / 8, 3 / 8 + 6 / 4 + 12 / 8, 6 / 8 + 12 / 4]) / 3
    # the place's own row weighs 1/2 of the 3x3 weights' 1/4, 1/8, ...
    torch.testing.assert_close(fv.recipro_cam(model, x, 0, layer="0")[0, 0], smooth - smooth.min())


@pytest.mark.parametrize("gaussian", [True, False])
def test_recipro_by_definition(model: Net, x: Tensor, gaussian: bool) -> None:
    found = fv.recipro_cam(model, x, 3, layer="conv2", gaussian=gaussian)
    line = torch.tensor([0.25, 0.5, 0.25] if gaussian else [0.0, 1.0, 0.0], dtype=f64)
    for n in range(2):
        expected = torch.zeros(7, 6, dtype=f64)
        for i in range(7):
            for j in range(6):
                mask = torch.zeros(9, 8, dtype=f64)
                mask[i : i + 3, j : j + 3] = line[:, None] * line
                inside = mask[1:-1, 1:-1]
                expected[i, j] = score_with(model, "conv2", x[n : n + 1], lambda maps, inside=inside: maps * inside)[3]
        torch.testing.assert_close(found[n], expected - expected.min())


def test_pytorch_grad_cam_gives_the_same(model: Net, x: Tensor) -> None:
    theirs = pytest.importorskip("pytorch_grad_cam")
    category = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    net = net.to(f64)
    net(x)
    expected = theirs.AblationCAM(net, [net[1]], batch_size=3)(x, [category(2)] * 2)
    found = fv.ablation_cam(net, x, 2, layer="1", size=(9, 8))
    np.testing.assert_allclose(tensors.normalize(found).numpy(), expected, atol=2e-4)  # theirs computes in float32


def test_only_what_follows_is_computed(model: Net, x: Tensor) -> None:
    """The first convolution gives its noted maps from the second pass on; zero channels are left out."""
    seen: list[int] = []
    model.conv3.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    with torch.no_grad():
        model.conv2.bias[2] = -1e3
    model.relu.inplace = False
    fv.ablation_cam(model, x[:1], 3, layer="conv2")
    assert seen[-1] == 6
    fv.ablation_cam(model, x[:1], 3, layer="relu")
    assert seen[-1] < 7


def test_predicted_class_probabilities_and_no_images(model: Net, x: Tensor) -> None:
    predicted = model(x).argmax(1)
    for method in (fv.ablation_cam, fv.recipro_cam, fv.score_cam):
        torch.testing.assert_close(method(model, x, layer="conv2"), method(model, x, predicted, layer="conv2"))
        several = method(model, x, [fv.class_probability(1), 4], layer="conv2", size=(3, 3))
        assert several.shape == (2, 2, 3, 3)
        assert several.isfinite().all()
        torch.testing.assert_close(method(model, x, 4, layer="conv2", size=(3, 3)), several[:, 1])
        assert method(model, x[:0], [1, 2], layer="conv2").shape == (0, 2, 7, 6)


def test_targets_inside_the_network(model: Net, x: Tensor) -> None:
    for method, title in ((fv.ablation_cam, "Ablation-CAM"), (fv.recipro_cam, "Recipro-CAM")):
        with pytest.raises(ValueError, match=f"^target should be about the output for {title}, got one about layer"):
            method(model, x, fv.neuron("conv3", 1), layer="conv2")  # type: ignore[operator]
    assert fv.score_cam(model, x, fv.neuron("conv3", 1), layer="conv2").shape == (2, 7, 6)


@pytest.mark.parametrize("name", ["squeezenet1_0", "resnet18", "densenet121", "mobilenet_v2"])
def test_networks(name: str) -> None:
    """Joined maps, shortcuts, dropout, batch norm: the last layer of each against a hook."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=4).eval()
    x = torch.randn(1, 3, 64, 64)
    found = fv.recipro_cam(model, x, 1, gaussian=False)
    assert found.shape[1:].numel() > 1
    layer = {"squeezenet1_0": "classifier", "resnet18": "layer4", "densenet121": "features", "mobilenet_v2": "features"}
    if name != "squeezenet1_0":

        def only(maps: Tensor) -> Tensor:
            one = torch.zeros_like(maps)
            one[..., -1, -1] = maps[..., -1, -1]
            return one

        def first(maps: Tensor) -> Tensor:
            one = torch.zeros_like(maps)
            one[..., 0, 0] = maps[..., 0, 0]
            return one

        expected = score_with(model, layer[name], x, only)[1] - score_with(model, layer[name], x, first)[1]
        torch.testing.assert_close(found[0, -1, -1] - found[0, 0, 0], expected, rtol=1e-3, atol=1e-5)
