"""The gradient of strided first convolutions: torch's own numbers, and what is left to torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastviz.execution.fast_conv import strided
from fastviz.execution.fast_conv.strided import StridedGradient


@pytest.fixture
def used(monkeypatch):
    """Counts the gradients that were computed so."""
    calls = []
    gradient = strided._gradient
    monkeypatch.setattr(strided, "_gradient", lambda *args: (calls.append(1), gradient(*args))[1])
    return calls


def gradient_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(2)
    output = module(leaf)
    (gradient,) = torch.autograd.grad((output * torch.randn(output.shape).to(output)).sum(), leaf)
    return gradient


@pytest.mark.parametrize("size", [(17, 22), (32, 32), (33, 30), (12, 45)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(7, 2, 0), (7, 2, 3), (11, 4, 2), (3, 2, 1), (4, 4, 0), (2, 3, 0), ((3, 5), 2, (0, 2)), (5, (2, 2), (4, 1))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_gradient_is_torchs(size, kernel, stride, padding, channels, used):
    """Also where windows leave pixels out: between them, and beyond the last one."""
    torch.manual_seed(1)
    conv = nn.Conv2d(channels, 6, kernel, stride, padding).double().requires_grad_(False)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    exact = gradient_of(conv, x)
    for memory in (torch.contiguous_format, torch.channels_last):
        with StridedGradient():
            found = gradient_of(conv, x.contiguous(memory_format=memory))
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    assert len(used) == 2


def test_worked_by_hand(used):
    """Windows of 2x2 weights 1, 2, 3, 4 side by side: each pixel's gradient is its weight; the last column has none."""
    conv = nn.Conv2d(1, 1, 2, stride=2, bias=False).requires_grad_(False)
    conv.weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    x = torch.zeros(1, 1, 2, 5, requires_grad=True)
    with StridedGradient():
        conv(x).sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0].tolist() == [[1, 2, 1, 2, 0], [3, 4, 3, 4, 0]]
    assert used


@pytest.mark.parametrize(
    ("module", "channels"),
    [
        (nn.Conv2d(3, 8, 3), 3),
        (nn.Conv2d(3, 8, 3, stride=(2, 1)), 3),
        (nn.Conv2d(3, 8, 3, stride=2, dilation=2), 3),
        (nn.Conv2d(4, 8, 3, stride=2, groups=2), 4),
        (nn.Conv2d(8, 8, 3, stride=2), 8),
        (nn.Conv2d(3, 8, 3, padding="valid"), 3),
    ],
)
def test_other_convolutions_are_left_to_torch(module, channels, used):
    module.requires_grad_(False)
    x = torch.randn(1, channels, 16, 16)
    exact = gradient_of(module, x)
    with StridedGradient():
        assert torch.equal(gradient_of(module, x), exact)
    assert not used


def test_weights_are_given_no_gradient(used):
    conv, x = nn.Conv2d(3, 8, 3, stride=2), torch.randn(1, 3, 16, 16)
    with StridedGradient():
        conv(x.requires_grad_()).sum().backward()
    assert conv.weight.grad is None
    assert used


def test_under_autocast_the_gradient_has_the_dtype_of_the_pictures(used):
    conv, x = nn.Conv2d(3, 16, 7, stride=2).requires_grad_(False), torch.randn(1, 3, 32, 32)
    exact = gradient_of(conv, x)
    with torch.autocast("cpu", torch.bfloat16), StridedGradient():
        found = gradient_of(conv, x)
    assert found.dtype == torch.float32
    assert used
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.1)


def test_shapes_that_do_not_fit_give_torch_s_own_error():
    conv = nn.Conv2d(3, 8, 3, stride=2).requires_grad_(False)
    with pytest.raises(RuntimeError, match="to have 3 channels"), StridedGradient():
        conv(torch.randn(1, 4, 16, 16, requires_grad=True))
