"""Resizing and blurring of pictures as tensors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastviz.images import tensors


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_is_antialiased_and_clipped_by_default(mode):
    x = torch.rand(2, 3, 9, 12).round()
    exact = F.interpolate(x, (5, 20), mode=mode, antialias=True)
    torch.testing.assert_close(tensors.resize(x, 5, 20, mode), exact.clamp(0, 1), rtol=0, atol=0)
    torch.testing.assert_close(tensors.resize(x - 0.5, 5, 20, mode, clip=False), exact - 0.5)
    low = tensors.resize(x.bfloat16(), 5, 20, mode)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact.clamp(0, 1), rtol=0, atol=0.01)


def test_pictures_of_the_same_size_are_unchanged():
    x = 3 * torch.randn(1, 3, 7, 8)
    assert tensors.resize(x, 7, 8, "bicubic") is x


def test_a_gaussian_by_hand():
    """Radius 1 for a third of a pixel; the border continues with the outermost pixels."""
    x = torch.tensor([[[[0.0, 1.0, 0.0]]]], dtype=torch.float64)
    side = torch.exp(torch.tensor(-0.5 / (1 / 3) ** 2, dtype=torch.float64))
    middle, side = 1 / (1 + 2 * side), side / (1 + 2 * side)
    found = tensors.gaussian_blur(x, 1 / 3)
    torch.testing.assert_close(found.flatten(), torch.stack([side, middle, side]))
    flat = torch.full((1, 2, 4, 5), 0.7, dtype=torch.float64)
    torch.testing.assert_close(tensors.gaussian_blur(flat, 2.5), flat)
