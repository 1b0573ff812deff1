"""Optimisers: ascent and Adam are their formulas, L-BFGS finds minima; bounds; names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastviz.engine.optimize import LBFGS, Adam, Ascent, by_name
from fastviz.engine.optimize.canvas import Frame, Pixels
from fastviz.engine.optimize.transforms import Jitter
from tests.engine.optimize.common import FRAME, Bowl, f64, noise, run


def test_ascent_is_its_formula():
    bowl, x = Bowl(2), noise(2)
    for norm in ("none", "sign", "rms"):
        made = run(bowl, x, optimizer=Ascent(0.01, norm), steps=3)
        expected = x
        for _ in range(3):
            g = -2 * bowl.weight * (expected - bowl.centre)
            size = {"none": 1, "sign": g.abs(), "rms": g.square().mean((1, 2, 3), keepdim=True).sqrt()}[norm]
            expected = expected + 0.01 * g / size
        torch.testing.assert_close(made.parameters, expected)
        assert made.reasons == ("steps", "steps")
        assert made.steps.tolist() == [3, 3]


def test_ascent_stays_where_the_gradient_is_zero():
    bowl = Bowl(1)
    assert torch.equal(Ascent(0.1).step(noise(1), evaluation(bowl.centre * 0), {}, None, None).parameters, noise(1))


def evaluation(gradients: Tensor):
    from fastviz.engine.optimize import Evaluation

    zeros = gradients.new_zeros(len(gradients))
    return Evaluation(zeros, zeros, zeros, gradients, gradients[:0])


def test_adam_is_that_of_torch():
    bowl, x = Bowl(2), noise(2)
    made = run(bowl, x, optimizer=Adam(0.03), steps=7)
    leaf = x.clone().requires_grad_()
    adam = torch.optim.Adam([leaf], lr=0.03, maximize=True)
    for _ in range(7):
        adam.zero_grad()
        bowl(leaf, torch.arange(2)).sum().backward()
        adam.step()
    torch.testing.assert_close(made.parameters, leaf.detach())


def test_lbfgs_finds_the_best_of_a_bowl():
    bowl = Bowl(3)
    made = run(bowl, noise(3), optimizer=LBFGS(), steps=100)
    torch.testing.assert_close(made.parameters, bowl.centre, rtol=0, atol=1e-5)
    # Ascent of 100 steps does not come near.
    assert float((run(bowl, noise(3), steps=100).totals - made.totals).max()) < -1e-3


def test_lbfgs_remembers_curvature():
    """On a quadratic of few dimensions, exact after about as many steps as dimensions; steepest ascent is not."""
    scale = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=f64).view(1, 1, 1, 4)
    x = torch.ones(1, 1, 1, 4, dtype=f64)
    frame = Frame((1, 4), (0.0,), (1.0,))

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        return -(scale * images.square()).sum((1, 2, 3))

    made = run(objective, x, frame=frame, optimizer=LBFGS(), steps=25)
    assert float(made.totals) > -1e-8
    assert float(run(objective, x, frame=frame, optimizer=LBFGS(history=1), steps=25).totals) < float(made.totals)


def test_lbfgs_on_the_rosenbrock_valley():
    def objective(images: Tensor, rows: Tensor) -> Tensor:
        a, b = images.flatten(1).unbind(1)
        return -((1 - a).square() + 100 * (b - a.square()).square())

    start = torch.tensor([[-1.2, 1.0], [0.0, 0.0]], dtype=f64).view(2, 1, 1, 2)
    made = run(objective, start, frame=Frame((1, 2), (0.0,), (1.0,)), optimizer=LBFGS(), steps=100)
    torch.testing.assert_close(made.parameters, torch.ones_like(start), rtol=0, atol=1e-5)


@pytest.mark.parametrize("optimizer", [LBFGS(), Adam(0.05), Ascent(0.05)], ids=str)
def test_bounds_hold(optimizer):
    """The best of a separable bowl within a box is its centre, moved into the box."""
    bowl = Bowl(2)
    made = run(bowl, noise(2), canvas=Pixels(), optimizer=optimizer, steps=150)
    low, high = Pixels().bounds(FRAME, bowl.centre)
    assert bool(((made.parameters >= low) & (made.parameters <= high)).all())
    if isinstance(optimizer, LBFGS):
        expected = torch.minimum(torch.maximum(bowl.centre, low), high)
        assert bool((expected != bowl.centre).any())
        torch.testing.assert_close(made.parameters, expected, rtol=0, atol=1e-4)


def test_lbfgs_stops_where_nothing_is_better():
    bowl = Bowl(2)
    start = torch.stack([bowl.centre[0] + 1e-3, noise(1)[0]])
    made = run(bowl, start, optimizer=LBFGS(), steps=300)
    assert made.reasons == ("converged", "converged")
    assert made.steps[0] < made.steps[1] < 300
    torch.testing.assert_close(made.parameters, bowl.centre, rtol=0, atol=1e-6)


def test_lbfgs_refuses_random_objectives():
    with pytest.raises(ValueError, match=r"transforms should be empty for LBFGS, whose line search"):
        run(Bowl(1), noise(1), optimizer=LBFGS(), transforms=[Jitter(1)])


def test_by_name():
    assert by_name("ascent", 0.1) == Ascent(0.1)
    assert by_name("lbfgs") == LBFGS()
    mine = Adam(0.3)
    assert by_name(mine) is mine
    with pytest.raises(ValueError, match="optimizer should be one of 'ascent', 'adam', 'lbfgs', got 'sgd'"):
        by_name("sgd")
    with pytest.raises(ValueError, match="learning_rate should be None for an optimizer"):
        by_name(mine, 0.1)
    with pytest.raises(TypeError, match="a name or an Optimizer, got int"):
        by_name(3)
    with pytest.raises(ValueError, match="learning_rate should be finite and above 0"):
        by_name("adam", 0)
