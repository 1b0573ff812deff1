"""What fooling images share: norm balls, and rounding to 8 bits with its repair."""

from __future__ import annotations

import math

import pytest
import torch

import fastviz as fv
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.methods.adversarial.aims import ClassAim, ValueAim, logit
from fastviz.methods.adversarial.fooling import AttackedModel, NormBall
from fastviz.models.descriptions import Preprocessing
from tests.methods.adversarial.common import linear, others, pictures, small


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pictures_of_8_bits_fool_too(dtype):
    """Under a normalisation, and after the way through whole levels that a PNG is."""
    seen = Preprocessing((12, 12), None, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    model = small(seen, dtype)
    mean, std = (torch.tensor(numbers, dtype=torch.float64).view(3, 1, 1) for numbers in (seen.mean, seen.std))
    x = ((pictures(4, torch.float64) - mean) / std).to(dtype)
    target = others(model, x)
    found = fv.fool(model, x, target, quantize=True, goal=0.9)
    assert found.success.all()
    assert found.images.dtype == torch.promote_types(dtype, torch.float32)
    levels = (found.images.double() * std + mean) * 255
    assert (levels - levels.round()).abs().max() < 1e-3
    assert levels.min() > -1e-3
    assert levels.max() < 255 + 1e-3


def test_rounding_is_repaired_only_as_far_as_needed():
    """A change of 0.42 levels everywhere is lost in rounding: whole levels at some values have to make up for it."""
    model = linear(40.0, grey=127 / 255)
    x = torch.full((1, 3, 4, 4), 127 / 255, dtype=torch.float64)
    exact, found = (fv.fool(model, x, 1, goal=0.9, quantize=quantize) for quantize in (False, True))
    assert found.success.item()
    levels = (found.images - x) * 255
    assert ((levels.abs() < 1e-9) | ((levels - 1).abs() < 1e-9)).all()
    assert int(levels.sum().round()) == math.ceil((math.log(9) + 1) / 40 * 255) == 21
    assert ((exact.images - x).abs() < 0.5 / 255).all()


def test_what_is_at_the_goal_but_for_rounding_is_repaired():
    """Below it by less than float32 can tell: another batch may have had it at the goal. Not what is far from it."""
    model = linear(40.0, grey=127 / 255)
    x = torch.full((1, 3, 4, 4), 127 / 255, dtype=torch.float64)
    x.view(-1)[:30] += 1 / 255
    reached = 40 * 30 / 255 - 1  # log(p / (1 - p))
    for missing, repaired in ((1e-4, True), (1.0, False)):
        goal = 1 / (1 + math.exp(-reached - missing))
        with frozen_model(model):
            attacked = AttackedModel(model, AttackedModel.frame_for(model, x))
            assert attacked.probabilities(x)[0, 1] < goal
            found = attacked.in_8_bits(ClassAim(torch.tensor([1]), goal), x)
            assert bool(attacked.probabilities(found)[0, 1] >= goal) == repaired
        assert int(((found - x) * 255).round().sum()) == repaired


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_radius_holds_in_8_bits_too(norm):
    model, x = small(), pictures(4)
    radius = 3 / 255 if norm == "inf" else 0.1
    found = fv.fool(model, x, others(model, x), method="gradient", norm=norm, radius=radius, quantize=True, steps=20)
    assert ((found.linf if norm == "inf" else found.l2) <= radius + 1e-9).all()
    levels = found.images * 255
    assert (levels - levels.round()).abs().max() < 1e-9


def test_ball_is_the_nearest_point():
    centre = torch.zeros(1, 1, 1, 2)
    rows = torch.tensor([0])
    for norm, expected in (("inf", [0.5, 0.4]), ("2", [0.3, 0.4])):
        ball = NormBall(centre, 0.5, norm)
        there = torch.tensor([0.6, 0.8 if norm == "2" else 0.4]).view(1, 1, 1, 2)
        torch.testing.assert_close(ball.changed(there, None, rows, 1).flatten(), torch.tensor(expected))
        torch.testing.assert_close(ball.changed(there / 10, None, rows, 1), there / 10)


def test_ball_on_whole_levels_drops_the_smallest_changes():
    ball = NormBall(torch.full((1, 1, 1, 3), 100 / 255), 5 / 255, "2")
    levels = ball.on_levels(torch.tensor([104.0, 101.0, 103.0]).view(1, 1, 1, 3), torch.tensor([0]))
    assert levels.flatten().tolist() == [104.0, 100.0, 103.0]


def test_logit_is_finite_where_p_is_one():
    assert logit(torch.zeros(1)).isfinite().all()
    assert ValueAim(None, None).margin == 0
