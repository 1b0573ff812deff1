"""Infidelity and max-sensitivity against captum, their definitions, and answers by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz.evaluation import infidelity, max_sensitivity

f64 = torch.float64


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(6)
    layers = (nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(), nn.Linear(45, 4))
    return nn.Sequential(*layers).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 9, 11, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scaled", [False, True])
def test_captum_gives_the_same_infidelity(model, x, scaled):
    metrics = pytest.importorskip("captum.metrics")
    torch.manual_seed(2)
    noise = 0.1 * torch.randn(3, 7, 3, 9, 11)
    at = [0]

    def perturb(images: Tensor) -> tuple[Tensor, Tensor]:
        drawn = noise.flatten(0, 1)[at[0] : at[0] + len(images)]
        at[0] = (at[0] + len(images)) % 21
        return drawn, images - drawn

    maps = torch.randn(3, 3, 9, 11)
    target = torch.tensor([1, 0, 3])
    theirs = metrics.infidelity(model, perturb, x, maps, target=target, n_perturb_samples=7, normalize=scaled)
    for batch_size in (21, 7, 4):
        at[0] = 0
        ours = infidelity(model, x, maps, target, perturbation=perturb, samples=7, scaled=scaled, batch_size=batch_size)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_captum_gives_the_same_sensitivity(model, x):
    metrics, attr = pytest.importorskip("captum.metrics"), pytest.importorskip("captum.attr")
    for image in range(3):
        torch.manual_seed(5 + image)
        explain = attr.Saliency(model).attribute
        theirs = metrics.sensitivity_max(explain, x[image : image + 1], target=2, perturb_radius=0.3)
        ours = max_sensitivity(
            model, x, lambda m, i, t: fv.input_gradient(m, i, t).abs(), 2, radius=0.3, seed=5, batch_size=4
        )
        torch.testing.assert_close(ours[image], theirs[0], rtol=1e-4, atol=1e-6)


class Linear(nn.Module):
    """Scores [N, 1]: the sum of the pixels times weights."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weights).sum((1, 2, 3))[:, None]


def test_the_truth_of_a_linear_network_has_no_infidelity():
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(3, 14, 14, generator=generator, dtype=f64)
    model, x = Linear(weights), torch.randn(5, 3, 14, 14, generator=generator, dtype=f64)
    truth = weights.expand(5, -1, -1, -1)
    for perturbation in ("square", "noise"):
        assert float(infidelity(model, x, truth, 0, perturbation=perturbation).max()) < 1e-12
        assert float(infidelity(model, x, 3 * truth, 0, perturbation=perturbation).min()) > 0
        assert float(infidelity(model, x, 3 * truth, 0, perturbation=perturbation, scaled=True).max()) < 1e-12
    # the shares of the pixels, with squares counted as such
    shares = (weights * x).sum(1)
    assert float(infidelity(model, x, shares, 0, indicator=True).max()) < 1e-12
    random = torch.rand(5, 14, 14, generator=generator, dtype=f64)
    assert float(infidelity(model, x, random, 0, indicator=True, scaled=True).min()) > 0.01


def test_infidelity_is_the_definition(model, x):
    """Squares from the seed: one after another, by hand."""
    maps = torch.rand(3, 9, 11)
    found = infidelity(model, x, maps, 1, samples=4, window=3, seed=8, batch_size=5)
    for image in range(3):
        drawn = torch.Generator().manual_seed(8 + image)
        tops, lefts = (torch.randint(0, size - 2, (4,), generator=drawn).tolist() for size in (9, 11))
        total = 0.0
        for top, left in zip(tops, lefts, strict=True):
            changed = x[image].clone()
            changed[:, top : top + 3, left : left + 3] = 0
            product = float(((x[image] - changed) * maps[image]).sum())
            with torch.no_grad():
                fall = float(model(x[image : image + 1])[0, 1] - model(changed[None])[0, 1])
            total += (product - fall) ** 2 / 4
        assert float(found[image]) == pytest.approx(total, rel=1e-4)


def test_sensitivity_by_hand_and_by_seed(model, x):
    """A map that is the image moves by δ itself; a constant map not at all."""
    moved = max_sensitivity(model, x, lambda m, i, t: i, 0, radius=0.1, samples=3, seed=4, relative=False)
    for image in range(3):
        own = torch.Generator().manual_seed(4 + image)
        norms = [float(torch.empty(3, 9, 11).uniform_(-0.1, 0.1, generator=own).norm()) for _ in range(3)]
        assert float(moved[image]) == pytest.approx(max(norms), rel=1e-4)
    assert max_sensitivity(model, x, lambda m, i, t: torch.ones(len(i), 2, 2), 0).tolist() == [0, 0, 0]
    state = torch.get_rng_state()
    one = max_sensitivity(model, x, fv.saliency, radius=0.2, seed=[4, 5, 9])
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(one[2:], max_sensitivity(model, x[2:], fv.saliency, radius=0.2, seed=9))
    assert max_sensitivity(model, x[:0], fv.saliency).shape == (0,)
    assert infidelity(model, x[:0], torch.zeros(0, 9, 11)).shape == (0,)


def test_the_class_is_that_of_the_image_as_it_is(model, x):
    asked = []

    def explain(m: nn.Module, images: Tensor, target: object) -> Tensor:
        asked.append(target.values(torch.eye(4)[:1].expand(len(images), -1) * torch.arange(4.0), {}))
        return images

    max_sensitivity(model, x, explain, radius=5.0, samples=2, batch_size=6)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "samples should be at least 1"),
        ({"perturbation": "blur"}, "perturbation should be one of 'square', 'noise'"),
        ({"perturbation": "noise", "indicator": True}, 'indicator needs perturbation="square"'),
        ({"window": 12}, "window should be at most the image, 9 pixels, got 12"),
        ({"perturbation": lambda images: (images, images[:, :1])}, "two tensors of shape"),
        ({"seed": [1]}, "one for each of 3 images, got 1"),
        ({"maps": torch.rand(3, 2, 9, 11)}, r"maps should have shape \[3, h, w\] or \[3, 3, h, w\]"),
    ],
)
def test_what_is_refused(model, x, options, words):
    with pytest.raises(ValueError, match=words):
        infidelity(model, x, **({"maps": torch.rand(3, 9, 11), "target": 0} | options))


def test_what_is_no_map_is_refused(model, x):
    with pytest.raises(ValueError, match="explain should return"):
        max_sensitivity(model, x, lambda m, i, t: i[:1], 0)
    with pytest.raises(TypeError, match="explain should return a floating-point tensor, got str"):
        max_sensitivity(model, x, lambda m, i, t: "map", 0)
    with pytest.raises(ValueError, match="radius should be finite and above 0"):
        max_sensitivity(model, x, fv.saliency, 0, radius=0)
