"""Fooling images: answers worked by hand for linear networks, promises of the batch, 8 bits, evolution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz import models
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.methods.adversarial.box_lbfgs import _reweighed
from fastviz.methods.adversarial.cppn import CPPN, Direct
from fastviz.methods.adversarial.fooling import Ball, Victim
from fastviz.models.loading import Preprocessing

PLAIN = Preprocessing((12, 12), None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def described(model: nn.Module, seen: Preprocessing = PLAIN) -> nn.Module:
    models.describe(model, preprocessing=seen)
    return model


def linear(weight: float = 2.0, grey: float = 0.5) -> nn.Module:
    """Class 1 is ahead of class 0 by ``weight`` · the sum of what 48 values are above ``grey``, minus 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).double()
    with torch.no_grad():
        model[1].weight[0].zero_()
        model[1].weight[1].fill_(weight)
        model[1].bias.copy_(torch.tensor([weight * 48 * grey + 1.0, 0.0]))
    return described(model)


def small(seen: Preprocessing = PLAIN, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Five classes that small changes of 12x12 pixels can tell apart."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Dropout(), nn.Flatten(), nn.Linear(128, 5)).to(dtype)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight *= 3
        model[6].weight *= 8
    return described(model, seen)


def pictures(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randint(256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(0)).to(dtype) / 255


def others(model: nn.Module, x: Tensor) -> Tensor:
    """For each image a class that it is not."""
    return (model.eval()(x).argmax(1) + 1) % 5


def test_shortest_change_of_a_linear_network():
    """log(p / (1 − p)) at the goal needs a sum; spreading it evenly is the shortest way to it."""
    found = fv.fool(linear(), torch.full((1, 3, 4, 4), 0.5).double(), 1, goal=0.9)
    each = (math.log(9) + 1) / 2 / 48
    assert 0.9 <= found.target_after.item() < 0.91
    torch.testing.assert_close(found.l2, torch.tensor([each * math.sqrt(48)]).double(), rtol=0.03, atol=0)
    torch.testing.assert_close(found.linf, torch.tensor([each]).double(), rtol=0.03, atol=0)
    torch.testing.assert_close(found.psnr, -20 * found.linf.log10(), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.target_before, torch.tensor([1 / (1 + math.e)]).double())
    assert found.original.item() == 0
    torch.testing.assert_close(found.original_before + found.target_before, torch.ones(1).double())
    torch.testing.assert_close(found.original_after + found.target_after, torch.ones(1).double())


def test_shortest_changes_end_at_the_goal():
    """The change is no longer than the goal needs, and no shorter one is beside it."""
    model, x = small(), pictures(6)
    target = others(model, x)
    found = fv.fool(model, x, target)
    assert found.success.all()
    assert (found.target_after < 0.993).all()
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
    found = _reweighed(history, torch.tensor([after - before]).double())
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


@pytest.mark.parametrize(("method", "each"), [("sign", 0.04), ("gradient", 0.04)])
def test_steps_of_a_linear_network(method, each):
    """Its gradient is the same everywhere, so both kinds of steps move every value by 0.01: four of them are needed."""
    found = fv.fool(linear(), torch.full((1, 3, 4, 4), 0.5).double(), 1, method=method, goal=0.9, step=0.01)
    assert (found.images - 0.5 - each).abs().max() < 1e-12
    assert found.steps.tolist() == [4]


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_radius_is_kept_and_failure_is_said(norm):
    radius = 0.02 if norm == "inf" else 0.02 * math.sqrt(48)
    x = torch.full((1, 3, 4, 4), 0.5).double()
    found = fv.fool(linear(), x, 1, method="sign", goal=0.9, step=0.013, norm=norm, radius=radius, steps=8)
    assert not found.success.item()
    assert (found.images - 0.52).abs().max() < 1e-12
    assert found.steps.item() == 8


@pytest.mark.parametrize("method", ["lbfgs", "sign", "gradient"])
def test_every_image_is_a_problem_of_its_own(method):
    model, x = small(), pictures(4)
    target = others(model, x)
    together = fv.fool(model, x, target, method=method, batch_size=3)
    assert together.success.all()
    assert together.target.tolist() == target.tolist()
    assert len(set(together.steps.tolist())) > 1
    for row in range(4):
        alone = fv.fool(model, x[row : row + 1], int(target[row]), method=method)
        torch.testing.assert_close(alone.images[0], together.images[row])
        assert alone.steps[0] == together.steps[row]
    output = model(together.images)
    assert torch.equal(output.argmax(1), target)
    torch.testing.assert_close(output.softmax(1).gather(1, target[:, None])[:, 0], together.target_after)


def test_lbfgs_changes_less_than_sign_steps():
    model, x = small(), pictures(6)
    target = others(model, x)
    least, sign, gradient = (fv.fool(model, x, target, method=m) for m in ("lbfgs", "sign", "gradient"))
    assert (least.l2 < sign.l2).all()
    assert (least.l2 < gradient.l2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pictures_of_8_bits_fool_too(dtype):
    """Under a normalisation, and after the way through whole levels that a PNG is."""
    seen = Preprocessing((12, 12), None, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    model = small(seen, dtype)
    mean, std = (torch.tensor(numbers, dtype=dtype).view(3, 1, 1) for numbers in (seen.mean, seen.std))
    x = (pictures(4, dtype) - mean) / std
    target = others(model, x)
    found = fv.fool(model, x, target, quantize=True, goal=0.9)
    assert found.success.all()
    assert found.images.dtype == dtype
    levels = (found.images.double() * std.double() + mean.double()) * 255
    tolerance = 2.0 if dtype == torch.bfloat16 else 1e-3  # bfloat16 has 8 bits itself
    assert (levels - levels.round()).abs().max() < tolerance
    assert levels.min() > -tolerance
    assert levels.max() < 255 + tolerance


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
            victim = Victim(model, Victim.frame_for(model, x), goal)
            assert victim.probabilities(x)[0, 1] < goal
            found = victim.in_8_bits(x, torch.tensor([1]))
            assert bool(victim.probabilities(found)[0, 1] >= goal) == repaired
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
        ball = Ball(centre, 0.5, norm)
        there = torch.tensor([0.6, 0.8 if norm == "2" else 0.4]).view(1, 1, 1, 2)
        torch.testing.assert_close(ball.changed(there, None, rows, 1).flatten(), torch.tensor(expected))
        torch.testing.assert_close(ball.changed(there / 10, None, rows, 1), there / 10)


def test_ball_on_whole_levels_drops_the_smallest_changes():
    ball = Ball(torch.full((1, 1, 1, 3), 100 / 255), 5 / 255, "2")
    levels = ball.on_levels(torch.tensor([104.0, 101.0, 103.0]).view(1, 1, 1, 3), torch.tensor([0]))
    assert levels.flatten().tolist() == [104.0, 100.0, 103.0]


def test_model_is_left_as_it_was():
    model, x = small().train(), pictures(2)
    x.requires_grad_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        found = fv.fool(model, x, others(small(), x))
        fv.fool_from_noise(model, 1, steps=2)
        fv.evolve(model, 1, generations=2, population=2)
    assert not found.images.requires_grad
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model[4].training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_no_images_give_no_images():
    for method in ("lbfgs", "sign"):
        found = fv.fool(small(), torch.zeros(0, 3, 12, 12).double(), 1, method=method, quantize=True)
        assert found.images.shape == (0, 3, 12, 12)
        assert found.success.shape == found.l2.shape == (0,)


def test_scores_that_are_not_finite_are_refused():
    model, x = small(), pictures(3)
    with torch.no_grad():
        target = others(model, x)
    model.register_forward_hook(lambda module, inputs, output: output * torch.tensor([[1.0], [math.nan], [1.0]]))
    with pytest.raises(ValueError, match="scores for x, got probabilities that are not finite for image 1"):
        fv.fool(model, x, target)


@pytest.mark.parametrize("method", ["lbfgs", "sign"])
def test_out_of_memory_says_what_would_fit(method):
    model, x = small(), pictures(4)
    target = others(model, x)

    def narrow(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if len(inputs[0]) > 2 and inputs[0].requires_grad:
            torch.empty(1 << 60)  # more than any machine has: the allocator's own error

    model.register_forward_pre_hook(narrow)
    with pytest.raises(MemoryError, match="4 images of 12x12 pixels at once do not fit on cpu, 2 would: batch_size=2"):
        fv.fool(model, x, target, method=method)
    assert fv.fool(model, x, target, method=method, batch_size=2).success.all()


def test_ctrl_c_returns_what_there_is():
    model, x = small(), pictures(2)
    target = others(model, x)
    calls = []

    def stop(module: nn.Module, inputs: object) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(stop)
    found = fv.fool(model, x, target, goal=0.9999)
    handle.remove()
    assert found.interrupted
    assert found.images.shape == x.shape
    assert not found.success.all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "same"}, r"target should not be the class that the model sees already, got class \d for image 1$"),
        ({"target": 5}, "target should be a class from 0 to 4, got 5"),
        ({"target": -1}, "target should be a class from 0 to 4, got -1"),
        ({"target": torch.tensor([1, 2])}, "target should be one class or one for each of 3 images, got 2"),
        ({"target": torch.tensor([[1, 2]])}, "target should be one class or a list of them"),
        ({"radius": 0.0, "method": "sign"}, "radius should be finite and above 0, got 0.0"),
        ({"radius": -1.0, "method": "sign"}, "radius should be finite and above 0, got -1.0"),
        ({"radius": 0.1}, "radius is for the methods"),
        ({"radius": 0.001, "method": "sign", "quantize": True}, "radius should be at least 1/255"),
        ({"goal": 1.0}, "goal should be a probability below 1, got 1.0"),
        ({"goal": 0}, "goal should be finite and above 0, got 0"),
        ({"method": "magic"}, "method should be one of 'lbfgs', 'sign', 'gradient', got 'magic'"),
        ({"norm": "1"}, "norm should be one of"),
        ({"steps": 0}, "steps should be at least 1, got 0"),
        ({"x": pictures(3) + 0.5}, "x should be pictures from 0 to 1 after normalisation"),
        ({"x": pictures(3)[:, :1]}, "x should have the 3 channels of the model.s preprocessing, got 1"),
    ],
)
def test_what_is_wrong_is_said(options, words):
    model, x = small(), pictures(3)
    target = others(model, x)
    if isinstance(options.get("target"), str):
        target[1] = model(x).argmax(1)[1]
        options = {}
    with pytest.raises(ValueError, match=words):
        fv.fool(model, **{"x": x, "target": target} | options)


@pytest.mark.parametrize("target", ["koala", 1.0, None, True])
def test_targets_that_are_no_classes(target):
    with pytest.raises(TypeError, match="target should be"):
        fv.fool(small(), pictures(1), target)


def test_noise_for_several_classes():
    model = fv.load_model("demo")
    found = fv.fool_from_noise(model, [1, 4, 7, 11, 19], quantize=True, seed=1)
    assert found.success.all()
    assert torch.equal(model(found.images).argmax(1), found.target)
    alone = fv.fool_from_noise(model, 1, seed=1)
    assert alone.steps[0] == found.steps[0]
    assert (alone.images[0] - found.images[0]).abs().max() < 0.05
    assert not torch.equal(fv.fool_from_noise(model, 1, seed=2).images, alone.images)


def test_noise_refuses_what_does_not_exist():
    with pytest.raises(ValueError, match="target should be a class from 0 to 4, got 9"):
        fv.fool_from_noise(small(), [1, 9])
    with pytest.raises(ValueError, match="target should be one class or a list of them"):
        fv.fool_from_noise(small(), [])


# --------------------------------------------------------------------------------------------------------- evolution


def test_evolution_needs_no_gradient_and_repeats_itself():
    model = fv.load_model("demo").requires_grad_(False)
    first, second = (fv.evolve(model, 10, population=16, generations=60, goal=0.9, seed=4) for _ in range(2))
    assert first.success.item()
    assert torch.equal(first.images, second.images)
    assert model(first.images).softmax(1)[0, 10] >= 0.9
    levels = fv.images.restore(first.images, models.preprocessing(model)) * 255
    assert (levels - levels.round()).abs().max() < 1e-3
    other = fv.evolve(model, 10, population=16, generations=2, seed=5)
    assert not torch.equal(other.images, first.images)


def test_what_is_best_stays():
    """More generations never give a lower probability, and several targets each get an image of their own."""
    model = fv.load_model("demo")
    few, more = (fv.evolve(model, [0, 5], population=8, generations=g, goal=0.9999) for g in (1, 12))
    assert (more.probability >= few.probability - 1e-6).all()
    assert (more.probability > few.probability + 1e-3).any()
    assert (more.steps <= 12).all()
    assert not torch.equal(more.images[0], more.images[1])


def test_direct_encoding_climbs():
    few, more = (fv.evolve(small(), 1, encoding="direct", population=8, generations=g, goal=0.999) for g in (1, 40))
    assert more.probability > few.probability


def test_evolution_says_what_is_wrong():
    for options, words in (
        ({"encoding": "dna"}, "encoding should be one of 'cppn', 'direct'"),
        ({"target": 20}, "target should be a class from 0 to 19, got 20"),
        ({"population": 0}, "population should be at least 1"),
        ({"generations": 0}, "generations should be at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            fv.evolve(fv.load_model("demo"), **options)


def test_a_cppn_worked_by_hand():
    """One node, the Gaussian of the place across; the only output |sin(node)|, on a picture of 1x3 pixels."""
    kind = CPPN(nodes=1)
    weights = torch.zeros(1, 2, 5)
    weights[0, 0, 0] = 1.0
    weights[0, 1, 4] = 1.0
    genomes = {"weights": weights, "functions": torch.tensor([[1]])}
    # the shorter side is one pixel: places are −2, 0, 2
    painted = kind.pictures(genomes, (1, 1, 3), torch.zeros(1, dtype=torch.float64))
    expected = torch.tensor([math.exp(-4), 1.0, math.exp(-4)]).double().sin()
    torch.testing.assert_close(painted[0, 0, 0], expected)


def test_cppn_mutations_keep_the_order_of_nodes():
    kind, generator = CPPN(nodes=6), torch.Generator().manual_seed(0)
    genomes = kind.start(20, (3, 8, 8), generator)
    for _ in range(30):
        changed = kind.mutated(genomes, generator)
        assert not torch.equal(changed["weights"], genomes["weights"])
        genomes = changed
    for node in range(6):
        assert not genomes["weights"][:, node, 4 + node :].any()
    painted = kind.pictures(genomes, (3, 8, 8), torch.zeros(1))
    assert painted.isfinite().all()
    assert painted.min() >= 0
    assert painted.max() <= 1


def test_direct_mutations_move_about_a_tenth_by_a_little():
    kind, generator = Direct(), torch.Generator().manual_seed(0)
    genomes = {"levels": torch.full((4, 3, 50, 50), 128, dtype=torch.uint8)}
    moved = kind.mutated(genomes, generator)["levels"].float() - 128
    assert 0.08 < (moved != 0).float().mean() < 0.1
    assert abs(moved.mean()) < 0.2
    assert 5 < moved[moved != 0].abs().mean() < 25
