"""The gradient of batch normalization in evaluation mode: torch's own numbers, and what is left to torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastviz as fv
from fastviz.execution.fast_conv import frozen_batch_norm
from fastviz.execution.fast_conv.frozen_batch_norm import FrozenBatchNorm


@pytest.fixture
def used(monkeypatch):
    """Counts the normalizations that were intercepted."""
    calls = []
    apply = frozen_batch_norm._BatchNorm.apply
    monkeypatch.setattr(frozen_batch_norm._BatchNorm, "apply", lambda *args: (calls.append(1), apply(*args))[1])
    return calls


def lively(norm: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for value in (*norm.parameters(), *norm.buffers()):
        if value.is_floating_point():
            nn.init.uniform_(value.detach(), 0.5, 2.0)
    return norm.eval()


def gradient_of(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    output = module(leaf)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    (gradient,) = torch.autograd.grad((output * weights).sum(), leaf)
    return output.detach(), gradient


def test_worked_by_hand(used):
    """(x - 1) * 3 / sqrt(3 + 1) + 5: 5 at 1, and 1.5 times the gradient."""
    norm = nn.BatchNorm2d(1, eps=1.0).eval()
    for name, value in {"running_mean": 1.0, "running_var": 3.0, "weight": 3.0, "bias": 5.0}.items():
        getattr(norm, name).data.fill_(value)
    x = torch.tensor([[[[1.0, 3.0]]]], requires_grad=True)
    with FrozenBatchNorm():
        y = norm(x)
        (y * torch.tensor([2.0, -4.0])).sum().backward()
    assert y.flatten().tolist() == [5, 8]
    assert x.grad.flatten().tolist() == [3, -6]
    assert used


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(5),
        nn.BatchNorm2d(5, affine=False),
        nn.BatchNorm1d(5),
        nn.Sequential(nn.Conv2d(5, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True)),
    ],
    ids=["affine", "plain", "of vectors", "behind a convolution"],
)
def test_gradient_is_torchs(norm, dtype, used):
    norm = lively(norm).to(dtype)
    x = torch.randn(3, 5, dtype=dtype) if isinstance(norm, nn.BatchNorm1d) else torch.randn(3, 5, 6, 7, dtype=dtype)
    orders = [torch.contiguous_format] if x.dim() == 2 else [torch.contiguous_format, torch.channels_last]
    for order in orders:
        given = x.contiguous(memory_format=order)
        value, exact = gradient_of(norm, given)
        with FrozenBatchNorm():
            same, found = gradient_of(norm, given)
        assert torch.equal(same, value)
        torch.testing.assert_close(found, exact)
    assert len(used) == len(orders)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(3).train(), nn.BatchNorm2d(3, track_running_stats=False).eval(), nn.InstanceNorm2d(3).eval()],
    ids=["training", "no statistics", "another"],
)
def test_others_are_torchs(norm, used):
    x = torch.randn(2, 3, 4, 4)
    _, exact = gradient_of(norm, x)
    with FrozenBatchNorm():
        _, found = gradient_of(norm, x)
    assert torch.equal(found, exact)
    assert not used


def test_mixed_dtypes_and_no_gradients_are_left_to_torch(used):
    norm = lively(nn.BatchNorm2d(3))
    with FrozenBatchNorm():
        gradient_of(norm, torch.randn(2, 3, 4, 4).bfloat16())
        norm(torch.randn(2, 3, 4, 4))
        with torch.no_grad():
            norm(torch.randn(2, 3, 4, 4, requires_grad=True))
    assert not used


def test_gradient_methods_use_it(used):
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)))
    x = torch.rand(2, 3, 8, 8)
    leaf = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(fv.input_gradient(model, x, 1), exact)
    assert used
    assert model[1].weight.grad is None
