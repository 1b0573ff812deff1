"""The L-BFGS box attack: the shortest changes worked by hand for linear networks, and what L-BFGS knows of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastviz as fv
from fastviz.engine.optimize import LBFGS
from tests.methods.adversarial.common import described, linear, others, pictures, small


def test_shortest_change_of_a_linear_network():
    """log(p / (1 − p)) at the goal needs a sum; spreading it evenly is the shortest way to it."""
    found = fv.fool(linear(), torch.full((1, 3, 4, 4), 0.5).double(), 1, goal=0.9)
    each = (math.log(9) + 1) / 2 / 48
    assert 0.9 <= found.probability.item() < 0.91
    torch.testing.assert_close(found.l2, torch.tensor([each * math.sqrt(48)]).double(), rtol=0.03, atol=0)
    torch.testing.assert_close(found.linf, torch.tensor([each]).double(), rtol=0.03, atol=0)
    torch.testing.assert_close(found.psnr, -20 * found.linf.log10(), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.probability_before, torch.tensor([1 / (1 + math.e)]).double())
    assert found.original.item() == 0
    torch.testing.assert_close(found.original_probability_before + found.probability_before, torch.ones(1).double())
    torch.testing.assert_close(found.original_probability + found.probability, torch.ones(1).double())


def test_shortest_changes_end_at_the_goal():
    """The change is no longer than the goal needs, and no shorter one is beside it."""
    model, x = small(), pictures(6)
    target = others(model, x)
    found = fv.fool(model, x, target)
    assert found.success.all()
    assert (found.probability < 0.993).all()
    # On the border the change points along the gradient, wherever it is free to.
    leaf = found.images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).log_softmax(1).gather(1, target[:, None]).sum(), leaf)
    free = (found.images > 0) & (found.images < 1)
    change = (found.images - x) * free
    assert (torch.cosine_similarity(change.flatten(1), (gradient * free).flatten(1)) > 0.8).all()


def test_pairs_of_lbfgs_follow_the_weight():
    """With the curvature K of the loss, y = (K + 2 · weight) s; where that is not above 0, a pair says nothing."""
    s = torch.eye(3, 5).double()[None]
    curvature = torch.diag(torch.tensor([1.0, -1.0, 2.0, 0.0, 0.0])).double()
    before, after = 2.0, 0.25
    history = {"s": s, "y": s @ curvature + 2 * before * s, "rho": torch.ones(1, 3).double(), "gamma": torch.ones(1)}
    found = LBFGS().with_more_curvature(history, 2 * torch.tensor([after - before]).double())
    torch.testing.assert_close(found["y"], s @ curvature + 2 * after * s)
    torch.testing.assert_close(found["rho"], torch.tensor([[1 / 1.5, 0.0, 1 / 2.5]]).double())
    torch.testing.assert_close(found["gamma"], torch.tensor([1 / 2.5]).double())


def test_white_pixels_cannot_become_whiter():
    """Half of the values are white already: the others must do the whole work, so each does twice as much."""
    model, x = linear(), torch.full((1, 3, 4, 4), 0.5).double()
    x[..., :2] = 1.0
    with torch.no_grad():
        model[1].bias[0] += 2 * 24 * 0.5
    found = fv.fool(model, x, 1, goal=0.9)
    change = (found.images - x)[0]
    assert change[..., :2].abs().max() == 0
    torch.testing.assert_close(change[..., 2:].mean().item(), (math.log(9) + 1) / 2 / 24, rtol=0.03, atol=0)


def test_the_shortest_way_to_a_value():
    """A sum of 48 values has to rise by 1.2: spreading it evenly is the shortest way."""
    model = described(nn.Sequential(nn.Conv2d(3, 1, 4, bias=False), nn.Flatten(), nn.Linear(1, 2)).double())
    nn.init.ones_(model[0].weight)
    x = torch.full((1, 3, 4, 4), 0.5).double()
    found = fv.fool(model, x, fv.neuron("0", 0), goal=25.2)
    assert found.success.item()
    assert 25.2 <= found.values.item() < 25.25
    assert found.values_before.item() == pytest.approx(24)
    torch.testing.assert_close(found.linf, torch.tensor([1.2 / 48]).double(), rtol=0.05, atol=0)
    rounded = fv.fool(model, x, fv.neuron("0", 0), goal=25.2, quantize=True)
    assert rounded.success.item()
    levels = rounded.pictures * 255
    assert (levels - levels.round()).abs().max() < 1e-9
    there = fv.fool(model, x, fv.neuron("0", 0), goal=23.0)
    assert torch.equal(there.images, x)
    assert there.steps.item() == 0
