"""What the tests of the optimisation loop share: a small network, a bowl, and a call with short settings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastviz.engine.optimize import Ascent, optimize
from fastviz.engine.optimize.canvas import Frame, Pixels

f64 = torch.float64


FRAME = Frame((6, 6), (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))


def noise(n: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(n, 3, 6, 6, dtype=f64, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).double()  # fmt: skip


class Bowl:
    """−Σ w (x − c)², another w and c for each image: the best is c."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(2)
        self.centre = torch.randn(n, 3, 6, 6, dtype=f64, generator=generator)
        self.weight = 0.1 + 5 * torch.rand(n, 3, 6, 6, dtype=f64, generator=generator)
        self.batches: list[list[int]] = []

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        self.batches.append(rows.tolist())
        return -(self.weight[rows] * (images - self.centre[rows]).square()).sum((1, 2, 3))


def run(objective, start, **options):
    settings = {"canvas": Pixels(clip=False), "frame": FRAME, "optimizer": Ascent(0.05), "steps": 5, **options}
    return optimize(settings.pop("model", nn.Identity()), objective, start, **settings)
