"""A small network whose images the tests of maximisation make."""

from __future__ import annotations

import torch
from torch import nn

from fastviz import models


def network(size: int = 16) -> nn.Sequential:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).double()  # fmt: skip
    models.describe(model, preprocessing=models.Preprocessing((size, size), size, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)))
    return model


def scores(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)
