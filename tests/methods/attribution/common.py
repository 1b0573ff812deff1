"""The network and the images of the tests of class activation maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

f64 = torch.float64


class Net(nn.Module):
    """Convolutions, an in-place rectifier and a reused one, average pooling, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.block = nn.Sequential(nn.Conv2d(4, 6, 2), nn.BatchNorm2d(6))
        self.average, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.relu(self.block(x))
        return self.fc(self.drop(self.average(x).flatten(1)))


def network() -> Net:
    torch.manual_seed(3)
    return Net().to(f64)


def images() -> Tensor:
    return torch.randn(3, 2, 9, 11, dtype=f64, generator=torch.Generator().manual_seed(4))
