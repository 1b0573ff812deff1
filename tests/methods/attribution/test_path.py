"""Integrated gradients, GradientSHAP and NoiseTunnel: by hand, the definition, captum number for number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz import reference
from fastviz.engine.gradients.quadrature import quadrature

RULES = ("gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid")


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3)
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Squares(nn.Module):
    """S_k = k Σ x²: its integrated gradient from 0 is k x²."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square().flatten(1).sum(1)[:, None] * torch.arange(4, dtype=x.dtype)


@pytest.mark.parametrize("rule", RULES)
def test_quadratures_by_hand(rule: str) -> None:
    places, weights = quadrature(rule, 4)
    by_hand = {
        "riemann_left": [0, 0.25, 0.5, 0.75],
        "riemann_right": [0.25, 0.5, 0.75, 1],
        "riemann_middle": [0.125, 0.375, 0.625, 0.875],
        "riemann_trapezoid": [0, 1 / 3, 2 / 3, 1],
    }
    if rule == "gausslegendre":
        for power in range(8):  # exact up to degree 2n − 1
            assert float((weights * places**power).sum()) == pytest.approx(1 / (power + 1), abs=1e-13)
        return
    torch.testing.assert_close(places, torch.tensor(by_hand[rule], dtype=torch.float64))
    assert float(weights.sum()) == pytest.approx(0.75 if rule == "riemann_trapezoid" else 1.0)


def test_squares_by_hand(x: Tensor) -> None:
    found = fv.integrated_gradients(Squares(), x, 2, steps=2)
    torch.testing.assert_close(found.attribution, 2 * x.square())
    assert found.delta.abs().max() < 1e-11


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_definition(model: nn.Module, x: Tensor, rule: str, batch_size: int | None) -> None:
    baseline = torch.full_like(x, 0.1)
    found = fv.integrated_gradients(model, x, [1, None], baseline=baseline, steps=5, method=rule, batch_size=batch_size)
    places, weights = quadrature(rule, 5)
    predicted = model(x).argmax(1)
    for number in range(3):
        for column, k in enumerate((1, int(predicted[number]))):
            expected = reference.integrated_gradients(
                lambda images, k=k: model(images)[:, k], x[number], baseline[number], places, weights
            )
            torch.testing.assert_close(found.attribution[number, column], expected)
            reached = model(x)[number, k] - model(baseline)[number, k]
            torch.testing.assert_close(found.delta[number, column], (expected.sum() - reached).detach())


@pytest.mark.parametrize("rule", RULES)
def test_captum(model: nn.Module, x: Tensor, rule: str) -> None:
    attr = pytest.importorskip("captum.attr")
    expected, delta = attr.IntegratedGradients(model).attribute(
        x, torch.ones_like(x[:1]), target=3, n_steps=7, method=rule, return_convergence_delta=True
    )
    found = fv.integrated_gradients(model, x, 3, baseline=1.0, steps=7, method=rule)
    # captum's places are rounded to float32
    torch.testing.assert_close(found.attribution, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.delta, delta, rtol=1e-5, atol=1e-6)


def test_layers_and_models_that_read_the_image_twice(x: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.first(x).relu() * self.second(x).relu()).mean((2, 3))

    torch.manual_seed(2)
    model = Twice().double()
    places, weights = quadrature("riemann_middle", 6)
    for target, score in (
        (1, lambda images: model(images)[:, 1]),
        (fv.neuron("first", 2, (3, 4)), lambda images: model.first(images)[:, 2, 3, 4]),
    ):
        found = fv.integrated_gradients(model, x[:1], target, steps=6, method="riemann_middle")
        expected = reference.integrated_gradients(score, x[0], torch.zeros_like(x[0]), places, weights)
        torch.testing.assert_close(found.attribution[0], expected)


def test_a_model_that_mixes_its_images_gets_one_at_a_time(x: Tensor) -> None:
    class Mixes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0)).flatten(1).square().sum(1)[:, None] + x.flatten(1).sum(1)[:, None]

    together = fv.integrated_gradients(Mixes(), x, 0, steps=3).attribution
    alone = torch.cat([fv.integrated_gradients(Mixes(), each[None], 0, steps=3).attribution for each in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_gradient_shap_of_what_is_linear_is_exact(x: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(256, 5)).double()
    baselines = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    found = fv.gradient_shap(model, x, 2, baselines=baselines, samples=6, seed=3)
    assert found.delta.abs().max() < 1e-12
    gradient = fv.input_gradient(model, x, 2)
    # x − the mean of the baselines that were drawn, which is the same for all values of an image
    way = found.attribution / gradient
    weights = torch.linalg.lstsq(baselines.flatten(1).T, (x - way).flatten(1).T).solution
    torch.testing.assert_close(weights.sum(0), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(weights * 6, (weights * 6).round())


def test_gradient_shap_does_not_depend_on_the_batch_and_agrees_with_integrated_gradients(
    model: nn.Module, x: Tensor
) -> None:
    few, many = (
        fv.gradient_shap(model, x, None, samples=7, noise=0.2, batch_size=batch_size) for batch_size in (1, 50)
    )
    torch.testing.assert_close(few.attribution, many.attribution)
    torch.testing.assert_close(few.delta, many.delta)
    exact = fv.integrated_gradients(model, x, steps=64, method="riemann_middle").attribution
    drawn = fv.gradient_shap(model, x, samples=2000, batch_size=500).attribution
    assert (drawn - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel_is_its_formula(model: nn.Module, x: Tensor, kind: str) -> None:
    random = torch.Generator().manual_seed(5)
    span = (x.amax((1, 2, 3)) - x.amin((1, 2, 3))).view(-1, 1, 1, 1)
    each = [
        fv.saliency(model, x + 0.2 * span * torch.empty_like(x).normal_(generator=random), model(x).argmax(1))
        for _ in range(6)
    ]
    mean, squares = torch.stack(each).mean(0), torch.stack(each).square().mean(0)
    expected = {"smoothgrad": mean, "smoothgrad_sq": squares, "vargrad": squares - mean**2}[kind]
    for batch_size in (1, 8, None):
        found = fv.noise_tunnel(fv.saliency, model, x, kind=kind, samples=6, noise=0.2, seed=5, batch_size=batch_size)
        torch.testing.assert_close(found, expected)


def test_noise_tunnel_of_other_methods(model: nn.Module, x: Tensor) -> None:
    found = fv.noise_tunnel(fv.integrated_gradients, model, x, [1, 2], samples=2, noise=0.0, steps=3)
    torch.testing.assert_close(found, fv.integrated_gradients(model, x, [1, 2], steps=3).attribution)
    torch.testing.assert_close(
        fv.noise_tunnel(fv.input_gradient, model, x, samples=5, seed=2),
        fv.smooth_grad(model, x, samples=5, noise=0.1, seed=2),
    )
    assert fv.var_grad(model, x, samples=3).shape == fv.smooth_grad_squared(model, x, samples=3).shape == (3, 10, 10)


def test_memory_does_not_grow_with_samples() -> None:
    """captum #1350: 2,000 samples were stacked. The tensors of a pass bound what is allocated."""
    sizes = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x.flatten(1).sum(1)[:, None]

    x = torch.rand(1, 1, 4, 4)
    fv.var_grad(Watching(), x, 0, samples=200)
    fv.gradient_shap(Watching(), x, 0, samples=200)
    fv.integrated_gradients(Watching(), x, 0, steps=200)
    assert max(sizes) <= 16


@pytest.mark.parametrize("within", [torch.no_grad, torch.inference_mode])
def test_frozen_parameters_and_gradients_switched_off(model: nn.Module, x: Tensor, within) -> None:
    expected = fv.integrated_gradients(model, x, steps=3).attribution
    model.train().requires_grad_(False)
    with within():
        given = x.clone()
        torch.testing.assert_close(fv.integrated_gradients(model, given, steps=3).attribution, expected)
        assert fv.gradient_shap(model, given, samples=2, noise=0.1).attribution.shape == x.shape
        assert fv.var_grad(model, given, [None, 2], samples=2).shape == (3, 2, 10, 10)
    assert model.training


def test_no_images(model: nn.Module, x: Tensor) -> None:
    found = fv.integrated_gradients(model, x[:0], [1, 2])
    assert found.attribution.shape == (0, 2, 3, 10, 10)
    assert found.delta.shape == (0, 2)
    assert fv.gradient_shap(model, x[:0]).attribution.shape == (0, 3, 10, 10)
    assert fv.var_grad(model, x[:0]).shape == (0, 10, 10)


WRONG = {
    "method should be one of .*'simpson'": lambda m, x: fv.integrated_gradients(m, x, 1, method="simpson"),
    "steps should be at least 2, got 1": lambda m, x: fv.integrated_gradients(m, x, 1, steps=1, method="riemann_left"),
    r"baseline should have shape \[3\]": lambda m, x: fv.integrated_gradients(m, x, 1, baseline=torch.zeros(2)),
    "batch_size should be at least 1": lambda m, x: fv.integrated_gradients(m, x, 1, batch_size=0),
    r"baselines should have shape \[B, 3": lambda m, x: fv.gradient_shap(m, x, 1, baselines=torch.zeros(2, 1, 1, 1)),
    "samples should be at least 1": lambda m, x: fv.gradient_shap(m, x, 1, samples=0),
    "noise should be finite and above 0": lambda m, x: fv.var_grad(m, x, 1, noise=-1.0),
    "kind should be one of": lambda m, x: fv.noise_tunnel(fv.saliency, m, x, 1, kind="square"),
    "method should be a function": lambda m, x: fv.noise_tunnel("saliency", m, x),
    "seed should be at least 0": lambda m, x: fv.var_grad(m, x, 1, seed=-1),
}


@pytest.mark.parametrize("words", WRONG)
def test_bad_arguments(model: nn.Module, x: Tensor, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        WRONG[words](model, x)


def test_photographs(shared) -> None:
    """SqueezeNet in float32: what it attributes adds up to the score, from two baselines."""
    weights = shared / "models" / "squeezenet1_0_imagenet.safetensors"
    network = fv.load_model("squeezenet1_0", weights=weights)
    images, _ = fv.load_images(sorted((shared / "images").glob("*.jpg"))[:1], model=network)
    for baseline in (0.0, "blur"):
        found = fv.integrated_gradients(network, images, baseline=baseline, steps=12)
        score = float(network(images).detach().max())
        assert math.isfinite(score)
        assert abs(float(found.delta)) < 0.25 * abs(score)
