"""Gradients of several targets from one forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastviz import targets

f64 = torch.float64


def test_gradients_of_several_values_from_one_pass() -> None:
    a, b = torch.randn(3, 2, dtype=f64, requires_grad=True), torch.randn(3, 4, dtype=f64, requires_grad=True)
    product: Tensor = torch.stack([a.sum(1) * b.sum(1), 2 * a[:, 0] + b[:, 3]], dim=1)
    for_a, for_b = targets.gradients(product, {"a": a, "b": b})
    torch.testing.assert_close(for_a[:, 0], b.sum(1, keepdim=True).expand(3, 2).detach())
    assert for_a[:, 1].tolist() == [[2, 0]] * 3
    torch.testing.assert_close(for_b[:, 0], a.sum(1, keepdim=True).expand(3, 4).detach())
    assert for_b[:, 1].tolist() == [[0, 0, 0, 1]] * 3
    assert a.grad is None


def test_gradients_name_what_the_target_does_not_depend_on() -> None:
    a, b = torch.ones(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    with pytest.raises(ValueError, match="target should depend on the layer, but has no gradient for it"):
        targets.gradients(a.sum(1), {"x": a, "the layer": b})
    with pytest.raises(ValueError, match="target should depend on x"):
        targets.gradients(a.detach().sum(1), {"x": a})
