"""Scores and maps worked with by hand, and a model that has the names of their layers."""

from __future__ import annotations

import torch
from torch import nn

from fastviz import targets
from fastviz.targets.selection import resolve

f64 = torch.float64


SCORES = torch.tensor([[1.0, 5.0, 2.0], [7.0, 0.0, 7.0]], dtype=f64)


MAPS = torch.arange(2 * 2 * 3 * 4, dtype=f64).reshape(2, 2, 3, 4)


FEATURES = torch.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=f64)


ACTIVATIONS = {"maps": MAPS, "features": FEATURES, "numbers": FEATURES[:, 0]}


class Model(nn.Module):
    """Only its layer names matter here."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.features, self.numbers = nn.Identity(), nn.Identity(), nn.Identity()


def values(target: targets.Target) -> list[object]:
    return resolve(target, Model()).values(SCORES, ACTIVATIONS).tolist()
