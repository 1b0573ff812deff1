"""FullGrad: what its terms add up to, pytorch-grad-cam number for number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz.images import tensors
from fastviz.methods.attribution import full_grad as module

f64 = torch.float64


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(True), nn.Conv2d(6, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    norm = model[3]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.bias)
    return model.to(f64).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 11, 13, dtype=f64, generator=torch.Generator().manual_seed(1))


def test_the_terms_add_up_to_the_score(model: nn.Sequential, x: Tensor) -> None:
    """Srinivas, Fleuret 2019, proposition 1: input times gradient plus biases times theirs is the score."""
    leaf, given = x.clone().requires_grad_(), {}
    value = leaf
    for at, layer in enumerate(model):
        value = layer(value)
        given[at] = value
        value = value.clone()
    gradients = torch.autograd.grad(value[:, 2].sum(), [leaf, given[0], given[3], given[7]])
    total = (gradients[0] * leaf).flatten(1).sum(1) + (gradients[3] * model[7].bias).sum(1)
    for at, gradient in ((0, gradients[1]), (3, gradients[2])):
        total = total + (module.bias_of(model[at])[:, None, None] * gradient).flatten(1).sum(1)
    torch.testing.assert_close(total, model(x)[:, 2])


@pytest.mark.parametrize("target", [2, None])
def test_pytorch_grad_cam_gives_the_same(model: nn.Sequential, x: Tensor, target: int | None) -> None:
    theirs = pytest.importorskip("pytorch_grad_cam")
    category = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    expected = theirs.FullGrad(model, [])(x.clone(), None if target is None else [category(target)] * 3)
    np.testing.assert_allclose(tensors.normalize(fv.full_grad(model, x, target)).numpy(), expected, atol=1e-5)


def test_targets_batches_and_the_model(model: nn.Sequential, x: Tensor) -> None:
    found = fv.full_grad(model.train(), x, [2, fv.class_probability(0)])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(layer._forward_hooks for layer in model)
    torch.testing.assert_close(fv.full_grad(model, x, 2, batch_size=2), found[:, 0])
    assert fv.full_grad(model, x[:0], [1, 2]).shape == (0, 2, 11, 13)
    with pytest.raises(ValueError, match=r"^target should be about the output for FullGrad, got one about layer '2'"):
        fv.full_grad(model, x, fv.channel("2", 1))


def test_layers_that_are_called_twice(x: Tensor) -> None:
    """Each call adds its bias."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(self.conv(x).relu()).mean((2, 3)))

    class Separate(nn.Module):
        def __init__(self, twice: Twice) -> None:
            super().__init__()
            self.first, self.second, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), twice.fc
            self.first.load_state_dict(twice.conv.state_dict())
            self.second.load_state_dict(twice.conv.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.second(self.first(x).relu()).mean((2, 3)))

    twice = Twice().to(f64)
    torch.testing.assert_close(fv.full_grad(twice, x, 1), fv.full_grad(Separate(twice).to(f64), x, 1))
