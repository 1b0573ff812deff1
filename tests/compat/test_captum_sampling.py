"""captum's classes of paths, samples and layers against captum's own, number for number."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastviz.compat import captum as ours

theirs = pytest.importorskip("captum.attr")

pytestmark = pytest.mark.filterwarnings("ignore")

MASK = torch.arange(12).view(3, 4).repeat_interleave(4, 0).repeat_interleave(3, 1)[None, None]


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 6)).eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        assert isinstance(found, tuple)
        assert len(found) == len(expected)
        for each, other in zip(found, expected, strict=True):
            same(each, other)
        return
    expected = expected.detach()
    assert found.dtype == expected.dtype
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * scale + 5e-8)


def both(call: Callable[[Any], Any]) -> None:
    """The same call of captum's classes and ours, from the same random numbers, or the same error."""
    results = []
    for module in (theirs, ours):
        torch.manual_seed(3)
        np.random.seed(3)
        try:
            results.append(call(module))
        except Exception as error:
            results.append(type(error))
    if isinstance(results[0], type):
        assert results[1] is results[0]
    else:
        same(results[1], results[0])


TARGETS: list[Any] = [2, torch.tensor(1), None, (1,), "each", "tensor", 99]


def target_for(target: Any, count: int) -> Any:
    if isinstance(target, str):
        numbers = [number % 6 for number in range(count)]
        return numbers if target == "each" else torch.tensor(numbers)
    return target


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("method", ["gausslegendre", "riemann_trapezoid", "riemann_left"])
def test_integrated_gradients(model: nn.Module, count: int, target: Any, method: str) -> None:
    x, k = images(count), target_for(target, count)
    for batch in (None, 7):
        both(lambda m, batch=batch: m.IntegratedGradients(model).attribute(
            x, target=k, n_steps=6, method=method, internal_batch_size=batch, return_convergence_delta=True
        ))  # fmt: skip


@pytest.mark.parametrize("baseline", [0.3, "image", "images", (0.5,), "wrong"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("times", [True, False])
def test_baselines(model: nn.Module, baseline: Any, dtype: torch.dtype, times: bool) -> None:
    x, twin = images(2).to(dtype), nn.Sequential(*model).to(dtype)
    named = {"image": torch.ones(1, 3, 12, 12), "images": 0.1 * x, "wrong": torch.ones(3, 3, 12, 12)}
    given = named[baseline].to(dtype) if isinstance(baseline, str) else baseline
    both(lambda m: m.IntegratedGradients(twin, times).attribute(
        (x,) if isinstance(baseline, tuple) else x, given, 2, n_steps=4, return_convergence_delta=True
    ))  # fmt: skip
    model.float()


def test_what_is_left_to_captum(model: nn.Module) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
            return (model(x) * y.mean()) * factor

    class Mixes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x - x.mean(0))

    x, vectors = images(3), torch.randn(4, 5)
    linear = nn.Sequential(nn.Linear(5, 3), nn.Tanh())
    calls: list[Callable[[Any], Any]] = [
        lambda m: m.IntegratedGradients(Two()).attribute((x, 2 * x), target=1, n_steps=4),
        lambda m: m.IntegratedGradients(Two()).attribute((x, 2 * x), None, 1, 3.0, n_steps=4),
        lambda m: m.IntegratedGradients(Mixes()).attribute(x, target=1, n_steps=4),
        lambda m: m.IntegratedGradients(linear).attribute(vectors, target=1, return_convergence_delta=True),
        lambda m: m.IntegratedGradients(model.forward).attribute(x, target=1, n_steps=4),
        lambda m: m.IntegratedGradients(model).attribute(x, target=1, n_steps=0),
        lambda m: m.IntegratedGradients(model).attribute(x, target=1, method="simpson"),
        lambda m: m.IntegratedGradients(model).attribute("x", target=1),
        lambda m: m.ShapleyValueSampling(Mixes()).attribute(x, target=1, feature_mask=MASK),
        lambda m: m.NoiseTunnel(m.Saliency(Mixes())).attribute(x, target=1, nt_samples=9),
        lambda m: m.GradientShap(Mixes()).attribute(x, 0 * x, 9, target=1),
        lambda m: m.Lime(linear).attribute(vectors[:1], target=1),
    ]
    for call in calls:
        both(call)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("stdevs", [0.0, 0.2])
def test_gradient_shap(model: nn.Module, count: int, stdevs: float) -> None:
    x, baselines = images(count), torch.randn(4, 3, 12, 12)
    for samples in (2, 9):
        both(lambda m, samples=samples: m.GradientShap(model).attribute(
            x, baselines, samples, stdevs, target=2, return_convergence_delta=True
        ))  # fmt: skip


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad", "wrong"])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", ["Saliency", "InputXGradient", "IntegratedGradients", "GuidedBackprop"])
def test_noise_tunnel(model: nn.Module, nt_type: str, count: int, name: str) -> None:
    x = images(count)
    options: dict[str, Any] = {"n_steps": 3} if name == "IntegratedGradients" else {}
    for samples, batch in ((3, None), (20, None), (20, 6)):
        both(lambda m, samples=samples, batch=batch: m.NoiseTunnel(getattr(m, name)(model)).attribute(
            x, nt_type, samples, batch, 0.3, target=target_for("each", count), **options
        ))  # fmt: skip
    if name == "IntegratedGradients":
        both(lambda m: m.NoiseTunnel(m.IntegratedGradients(model)).attribute(
            x, nt_type, 20, target=1, baselines=0.1 * x, return_convergence_delta=True, n_steps=3
        ))  # fmt: skip


@pytest.mark.parametrize("layer", [0, 2, 4, 6])
@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.parametrize("count", [1, 5])
def test_layers(model: nn.Module, layer: int, at_input: bool, count: int) -> None:
    x, part = images(count), model[layer]  # type: ignore[index]
    both(lambda m: m.LayerActivation(model, part).attribute(x, None, at_input))
    for times in (True, False):
        both(lambda m, times=times: m.LayerGradientXActivation(model, part, None, times).attribute(
            x, 2, None, at_input
        ))  # fmt: skip
    for steps in (3, 40):
        both(lambda m, steps=steps: m.InternalInfluence(model, part).attribute(
            x, 0.1, 2, n_steps=steps, attribute_to_layer_input=at_input
        ))  # fmt: skip
        both(lambda m, steps=steps: m.LayerConductance(model, part).attribute(
            x, 0.1, 2, n_steps=steps, attribute_to_layer_input=at_input, return_convergence_delta=True
        ))  # fmt: skip


def test_several_layers_and_errors_of_layers(model: nn.Module) -> None:
    x, unused = images(2), nn.Linear(2, 2)
    for found, expected in zip(
        ours.LayerActivation(model, [model[0], model[3]]).attribute(x),  # type: ignore[index]
        theirs.LayerActivation(model, [model[0], model[3]]).attribute(x),  # type: ignore[index]
        strict=True,
    ):
        same(found, expected)
    for name in ("LayerActivation", "LayerGradientXActivation"):
        for module in (theirs, ours):
            with pytest.raises((AssertionError, KeyError, RuntimeError)):
                getattr(module, name)(model, unused).attribute(x)
    both(lambda m: m.LayerGradientXActivation(model, model[0]).attribute(x))  # type: ignore[index]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["ShapleyValueSampling", "ShapleyValues", "KernelShap", "Lime"])
@pytest.mark.parametrize("per_eval", [1, 4, 0])
def test_sampling(model: nn.Module, count: int, name: str, per_eval: int) -> None:
    x = images(count)
    mask = MASK % 4 if name == "ShapleyValues" else MASK
    samples = {} if name == "ShapleyValues" else {"n_samples": 15}
    for target, baselines in ((2, None), (target_for("each", count), 0.3), (target_for("tensor", count), 0.1 * x)):
        both(lambda m, target=target, baselines=baselines: getattr(m, name)(model).attribute(
            x, baselines, target, feature_mask=mask, perturbations_per_eval=per_eval, **samples
        ))  # fmt: skip


@pytest.mark.parametrize(
    "change", [{"feature_mask": MASK[..., :5]}, {"target": 99}, {"feature_mask": MASK * 2}], ids=str
)
@pytest.mark.parametrize("name", ["ShapleyValueSampling", "KernelShap", "Lime"])
def test_errors_and_gaps_of_sampling(model: nn.Module, name: str, change: dict[str, Any]) -> None:
    arguments = {"target": 1, "feature_mask": MASK} | change
    both(lambda m: getattr(m, name)(model).attribute(images(1), **arguments))


def test_sampling_of_coefficients_and_outputs_of_several_values(model: nn.Module) -> None:
    x = images(1)
    both(lambda m: m.Lime(model).attribute(x, target=1, feature_mask=MASK, return_input_shape=False))
    both(lambda m: m.KernelShap(model).attribute((x,), target=1, feature_mask=(MASK,)))
    both(lambda m: m.ShapleyValueSampling(model).attribute(x, feature_mask=MASK, n_samples=3))
    both(lambda m: m.ShapleyValueSampling(lambda y: model(y).sum()).attribute(x, feature_mask=MASK, n_samples=3))


@pytest.mark.parametrize("count", [1, 5])
def test_feature_permutation(model: nn.Module, count: int) -> None:
    x = images(count)
    for per_eval in (1, 3):
        both(lambda m, per_eval=per_eval: m.FeaturePermutation(model).attribute(
            x, 2, feature_mask=MASK, perturbations_per_eval=per_eval
        ))  # fmt: skip


def test_warnings_are_captums(model: nn.Module) -> None:
    for module in (theirs, ours):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module.KernelShap(model).attribute(images(2), target=1, feature_mask=MASK)
        assert any("multiple inputs" in str(each.message) for each in caught)
