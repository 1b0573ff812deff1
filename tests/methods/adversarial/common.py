"""Small networks that the tests of fooling images attack, and pictures for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastviz import models
from fastviz.models.descriptions import Preprocessing

PLAIN = Preprocessing((12, 12), None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def described(model: nn.Module, seen: Preprocessing = PLAIN) -> nn.Module:
    models.describe(model, preprocessing=seen)
    return model


def linear(weight: float = 2.0, grey: float = 0.5) -> nn.Module:
    """Class 1 is ahead of class 0 by ``weight`` · the sum of what 48 values are above ``grey``, minus 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).double()
    with torch.no_grad():
        model[1].weight[0].zero_()
        model[1].weight[1].fill_(weight)
        model[1].bias.copy_(torch.tensor([weight * 48 * grey + 1.0, 0.0]))
    return described(model)


def small(seen: Preprocessing = PLAIN, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Five classes that small changes of 12x12 pixels can tell apart."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Dropout(), nn.Flatten(), nn.Linear(128, 5)).to(dtype)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight *= 3
        model[6].weight *= 8
    return described(model, seen)


def pictures(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randint(256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(0)).to(dtype) / 255


def others(model: nn.Module, x: Tensor) -> Tensor:
    """For each image a class that it is not."""
    return (model.eval()(x).argmax(1) + 1) % 5
