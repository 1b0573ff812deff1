"""What counts as a first convolution that can be left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastviz.execution.first_layer import FirstConvolutionFinder, FirstConvolutionReplaced


def of(forward):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    return Model()


TAKEN = {
    "module": lambda m, x: m.conv(x).relu(),
    "function": lambda m, x: functional.conv2d(x, m.conv.weight, stride=(1, 2), groups=1),
    "shape asked": lambda m, x: m.conv(x).view(x.shape[0], -1) * (x.dim() + x.size(1)),
}
LEFT = {
    "a second reader": lambda m, x: m.conv(x).mean() + x.mean(),
    "called twice": lambda m, x: m.conv(x) + m.conv(x),
    "something before": lambda m, x: m.conv(x * 2),
    "in place before": lambda m, x: m.conv(x.mul_(2)),
    "value read": lambda m, x: m.conv(x) * float(x.max()),
    "none": lambda m, x: x.mean(),
}


@pytest.mark.parametrize("name", TAKEN)
def test_found_and_replaced(name: str) -> None:
    model, x = of(TAKEN[name]), torch.randn(2, 3, 8, 8)
    with FirstConvolutionFinder(x) as finder:
        expected = model(x)
    assert finder.found is not None
    maps = finder.found(x)
    placeholder = torch.full_like(x, torch.nan)
    with FirstConvolutionReplaced(placeholder, maps):
        torch.testing.assert_close(model(placeholder), expected)


@pytest.mark.parametrize("name", LEFT)
def test_not_found(name: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    with FirstConvolutionFinder(x) as finder:
        of(LEFT[name])(x)
    assert finder.found is None
