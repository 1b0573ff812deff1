"""CAM: its definition, the endings of networks that it takes, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastviz.methods.attribution.cam import cam
from fastviz.methods.attribution.grad_cam import grad_cam
from fastviz.methods.attribution.gradients import guided_backprop
from fastviz.targets.objectives import channel, class_score
from tests.methods.attribution.common import Net, f64, images, network


@pytest.fixture
def model() -> Net:
    return network()


@pytest.fixture
def x() -> Tensor:
    return images()


def test_cam_is_its_definition_and_its_mean_the_score(model: Net, x: Tensor) -> None:
    model.eval()
    maps = F.relu(model.block(model.pool(F.relu(model.conv1(x)))))
    expected = torch.einsum("k,nkhw->nhw", model.fc.weight[2], maps)
    found = cam(model, x, 2)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.mean((1, 2)) + model.fc.bias[2], model(x)[:, 2])
    assert found.min() < 0
    combined = cam(model, x, class_score(2) - 0.5 * class_score(1))
    torch.testing.assert_close(combined, found - 0.5 * cam(model, x, 1))


def test_cam_of_a_network_that_rectifies_without_a_module(x: Tensor) -> None:
    """DenseNet calls F.relu between its last maps and the average."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.classifier = nn.Conv2d(2, 6, 3), nn.Linear(6, 5)

        def forward(self, value: Tensor) -> Tensor:
            return self.classifier(F.relu(self.features(value)).mean((2, 3)))

    model = Dense().to(f64)
    expected = torch.einsum("k,nkhw->nhw", model.classifier.weight[1], F.relu(model.features(x)))
    torch.testing.assert_close(cam(model, x, 1), expected.detach())


def test_cam_names_the_layers_of_a_network_that_ends_otherwise(x: Tensor) -> None:
    two = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5)
    ).to(f64)
    with pytest.raises(ValueError, match=r"mean of '0' \[3, 6, 7, 9\], and linear layer '5', do not give its scores"):
        cam(two, x)
    none = nn.Sequential(nn.Conv2d(2, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(f64)
    with pytest.raises(ValueError, match=r"mean of '0' \[3, 5, 7, 9\], and no linear layer, do not give its scores"):
        cam(none, x)
    # Weights of zero give the right scores whatever the maps are.
    zero = nn.Sequential(nn.Conv2d(2, 6, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 5)).to(f64)
    nn.init.zeros_(zero[3].weight)
    with pytest.raises(ValueError, match="do not give its scores"):
        cam(zero, x)


def test_cam_refuses_targets_inside_the_network(model: Net, x: Tensor) -> None:
    with pytest.raises(ValueError, match="target should be about classes for CAM, got one about layer 'block'"):
        cam(model, x, channel("block", 0))


def test_cam_of_a_diverged_network_says_so(model: Net, x: Tensor) -> None:
    """It ended in torch's complaint about a tolerance of NaN."""
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"model should give finite scores for CAM.*got NaN"):
        cam(model, x, 1)
    assert grad_cam(model, x, 1).isnan().any()
    assert guided_backprop(model, x, 1).isnan().any()
