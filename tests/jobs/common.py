"""A small network and photographs for tests of jobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastviz import models


class Tiny(nn.Sequential):
    """A network of 16x16 pictures and 3 classes."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(
                nn.Conv2d(3, 4, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(4, 4, 3, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(4 * 8 * 8, 3),
            )


def tiny() -> nn.Module:
    model = Tiny().eval()
    models.describe(
        model,
        preprocessing=models.Preprocessing((16, 16), 20, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        class_names=["cat", "dog", "bird"],
    )
    return model


def photograph(path: Path, seed: int = 0, size: tuple[int, int] = (30, 24)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
