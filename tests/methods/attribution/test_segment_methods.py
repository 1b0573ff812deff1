"""Feature ablation, Shapley sampling, KernelSHAP and LIME over segments: by hand, the definition, captum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz import reference
from fastviz.engine import incremental
from fastviz.engine.masking.segments import numbered
from fastviz.images.superpixels import superpixels

METHODS = {
    "feature_ablation": fv.feature_ablation,
    "shapley_sampling": fv.shapley_sampling,
    "kernel_shap": fv.kernel_shap,
    "lime": fv.lime,
}
methods = pytest.mark.parametrize("name", METHODS)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(72, 5)).double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def parts() -> Tensor:
    """Six segments of the first image, four of the second, in numbers with gaps."""
    rows, columns = torch.arange(10)[:, None] // 5, torch.arange(10) // 4
    return torch.stack([rows * 7 + columns, rows * 2 + (columns > 1)])


def exact(model: nn.Module, image: Tensor, index: Tensor, k: int, fill: Tensor) -> Tensor:
    def value(kept: frozenset[int]) -> float:
        keep = torch.isin(index, torch.tensor(sorted(kept)))
        return float(model(torch.where(keep, image, fill)[None])[0, k].detach())

    return torch.tensor(reference.shapley_values(value, int(index.max()) + 1), dtype=torch.float64)


def test_feature_ablation_is_its_formula_and_captums(model: nn.Module, x: Tensor, parts: Tensor) -> None:
    found = fv.feature_ablation(model, x, [3, None], segments=parts, fill=0.5)
    predicted = model(x).argmax(1)
    for number in range(2):
        for column, k in enumerate((3, int(predicted[number]))):
            clean = model(x)[number, k]
            for label in parts[number].unique():
                covered = torch.where(parts[number] == label, 0.5, x[number])
                at = parts[number] == label
                expected = (clean - model(covered[None])[0, k]).detach().expand(int(at.sum()))
                torch.testing.assert_close(found.attribution[number, column][at], expected)
    attr = pytest.importorskip("captum.attr")
    theirs = attr.FeatureAblation(model).attribute(x, 0.5, target=3, feature_mask=parts[:, None])
    torch.testing.assert_close(found.attribution[:, 0], theirs[:, 0].double(), rtol=1e-5, atol=1e-6)


def test_feature_ablation_by_rectangles(traced: None, model: nn.Module, x: Tensor, parts: Tensor) -> None:
    swept = fv.feature_ablation(model, x, 3, segments=parts, fill="mean")
    assert swept.stats["path"] in ("incremental", "dense")
    dense = fv.feature_ablation(model, x, fv.class_score(3) + 0.0 * fv.channel("0", 1), segments=parts, fill="mean")
    torch.testing.assert_close(swept.attribution, dense.attribution)


def test_shapley_sampling_of_all_orders_is_exact(model: nn.Module, x: Tensor, parts: Tensor) -> None:
    """All orders of four segments: what sampling estimates, and its sum in any order."""
    found = fv.shapley_sampling(model, x, 2, segments=parts, permutations=200, fill=0.25)
    index, counts = numbered(parts, x)
    assert counts == [6, 4]
    for number, count in enumerate(counts):
        expected = exact(model, x[number], index[number], 2, torch.full_like(x[number], 0.25))
        error = (found.values[number, :count] - expected).abs()
        assert bool((error <= 5 * found.errors[number, :count] + 1e-9).all())
        reached = model(x)[number, 2] - model(torch.full_like(x[:1], 0.25))[0, 2]
        torch.testing.assert_close(found.values[number].sum(), reached.detach())
    assert not found.values[1, 4:].any()


@pytest.mark.parametrize("segments", [4, 1])
def test_shapley_sampling_goes_from_state_to_state(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, segments: int
) -> None:
    """Computed on rectangles it is what whole pictures give, which a target inside the network asks for."""
    chain = incremental.outputs_of_changes
    monkeypatch.setattr(incremental, "outputs_of_changes", lambda *a, **b: chain(*a, **b, trace="always"))
    monkeypatch.setattr("fastviz.engine.incremental.chain._LEAST_GAIN", 0.0)
    wide = nn.Sequential(*model[:5], nn.AdaptiveAvgPool2d(3), *model[5:]).double().eval()
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts = torch.arange(40)[:, None] // (40 // segments) * segments + torch.arange(40) // (40 // segments)
    options = {"segments": parts, "permutations": 3, "fill": "blur", "seed": 2}
    found = fv.shapley_sampling(wide, x, 3, **options)
    dense = fv.shapley_sampling(wide, x, fv.class_score(3) + 0.0 * fv.channel("0", 1), **options)
    assert found.stats["path"] == "chain"
    assert dense.stats["path"] == "dense"
    assert found.stats["evaluations"] == 2 * 3 * segments**2
    torch.testing.assert_close(found.values, dense.values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.errors, dense.errors, rtol=1e-6, atol=1e-9)


def test_shapley_sampling_is_its_formula(model: nn.Module, x: Tensor, parts: Tensor) -> None:
    found = fv.shapley_sampling(model, x[:1], [1, 2], segments=parts[0], permutations=3, seed=4)
    random = torch.Generator().manual_seed(4)
    index = numbered(parts[0], x[:1])[0][0]
    total = torch.zeros(2, 6, dtype=torch.float64)
    for order in (torch.randperm(6, generator=random) for _ in range(3)):
        for at, segment in enumerate(order):
            before, after = (torch.isin(index, order[:length]) for length in (at, at + 1))
            scores = [model((x[0] * keep)[None])[0, 1:3].detach() for keep in (before, after)]
            total[:, segment] += scores[1] - scores[0]
    torch.testing.assert_close(found.values[0], total / 3)
    for batch_size in (1, 5):
        again = fv.shapley_sampling(
            model, x[:1], [1, 2], segments=parts[0], permutations=3, seed=4, batch_size=batch_size
        )
        torch.testing.assert_close(again.values, found.values)


def test_kernel_shap_of_all_coalitions_is_exact(model: nn.Module, x: Tensor, parts: Tensor) -> None:
    found = fv.kernel_shap(model, x, 2, segments=parts, samples=64)
    index, counts = numbered(parts, x)
    for number, count in enumerate(counts):
        expected = exact(model, x[number], index[number], 2, torch.zeros_like(x[number]))
        torch.testing.assert_close(found.values[number, :count], expected)


def test_kernel_shap_of_some_coalitions(model: nn.Module, x: Tensor) -> None:
    parts = torch.arange(25).view(5, 5).repeat_interleave(2, 0).repeat_interleave(2, 1)
    found = fv.kernel_shap(model, x, 2, segments=parts, samples=2000)
    sampled = fv.shapley_sampling(model, x, 2, segments=parts, permutations=400)
    reached = (model(x) - model(0 * x))[:, 2].detach()
    torch.testing.assert_close(found.values.sum(1), reached)
    assert (found.values - sampled.values).abs().max() < 0.05 * sampled.values.abs().max()


def test_lime_of_what_is_linear(x: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(300, 3)).double()
    parts = torch.arange(4).view(2, 2).repeat_interleave(5, 0).repeat_interleave(5, 1)
    found = fv.lime(model, x, 1, segments=parts, samples=60, penalty=0.0, fill=0.0)
    ablated = fv.feature_ablation(model, x, 1, segments=parts)
    torch.testing.assert_close(found.values, ablated.values)
    assert found.stats["fit"] == [[pytest.approx(1.0)], [pytest.approx(1.0)]]


def test_lime_is_its_formula(model: nn.Module, x: Tensor, parts: Tensor) -> None:
    found = fv.lime(model, x[:1], 2, segments=parts[0], samples=40, penalty=0.7, kernel_width=0.4, fill=0.0, seed=3)
    index = numbered(parts[0], x[:1])[0][0]
    rows = torch.rand(40, 6, generator=torch.Generator().manual_seed(3)) < 0.5
    rows[0] = True
    y = torch.stack([model((x[0] * row[index])[None])[0, 2].detach() for row in rows])
    z, one = rows.double(), torch.ones(6, dtype=torch.float64)
    cosine = (z @ one) / (z.norm(dim=1) * one.norm()).clamp(min=1e-12)
    w = torch.exp(-((1 - cosine) ** 2) / 0.4**2).sqrt()
    mean, middle = (w[:, None] * z).sum(0) / w.sum(), (w * y).sum() / w.sum()
    centred, rest = z - mean, y - middle
    square = centred.T @ (w[:, None] * centred) + 0.7 * torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.solve(square, centred.T @ (w * rest))
    torch.testing.assert_close(found.values[0], expected)


@methods
def test_one_segment_takes_it_all(model: nn.Module, x: Tensor, name: str) -> None:
    if name == "lime":  # one coefficient, and a constant beside it
        pytest.skip("its value is shared with the constant")
    found = METHODS[name](model, x, 1, segments=torch.zeros(10, 10, dtype=torch.int64))
    torch.testing.assert_close(found.values[:, 0], (model(x) - model(0 * x))[:, 1].detach())


@methods
def test_no_images_and_the_model_as_it_was(model: nn.Module, x: Tensor, parts: Tensor, name: str) -> None:
    model.train()
    assert METHODS[name](model, x[:0], [1, 2]).attribution.shape == (0, 2, 10, 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        METHODS[name](model, x.clone(), segments=parts)
    assert model.training
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@methods
def test_superpixels_are_cut_where_none_are_given(model: nn.Module, x: Tensor, name: str) -> None:
    pytest.importorskip("skimage")
    found = METHODS[name](model, x, segments=6)
    assert found.segments.shape == (2, 10, 10)
    torch.testing.assert_close(found.segments, superpixels(x, 6))


def test_superpixels_follow_edges() -> None:
    pytest.importorskip("skimage")
    picture = torch.zeros(1, 3, 32, 32)
    picture[:, 0, :, 16:] = 1.0
    parts = superpixels(picture, 8)[0]
    assert not set(parts[:, :15].unique().tolist()) & set(parts[:, 17:].unique().tolist())
    assert superpixels(torch.rand(1, 1, 16, 16), 4).max() >= 1
    assert superpixels(torch.zeros(1, 3, 16, 16), 4).shape == (1, 16, 16)


WRONG = {
    r"segments should have shape \[10, 10\] or \[2, 10, 10\], got \[3, 3\]": {"segments": torch.zeros(3, 3).long()},
    "segments should be whole numbers, got torch.float32": {"segments": torch.zeros(10, 10)},
    "segments should be a number or a tensor": {"segments": "slic"},
    "segments should be at least 1": {"segments": 0},
    "fill should be one of 'mean', 'blur'": {"fill": "grey"},
    "batch_size should be at least 1": {"batch_size": 0},
    "target should be from 0 to 4|class": {"target": 9},
}


@methods
@pytest.mark.parametrize("words", WRONG)
def test_bad_arguments(model: nn.Module, x: Tensor, parts: Tensor, name: str, words: str) -> None:
    pytest.importorskip("skimage")
    with pytest.raises((TypeError, ValueError), match=words):
        METHODS[name](model, x, **{"target": 1, "segments": parts, **WRONG[words]})
