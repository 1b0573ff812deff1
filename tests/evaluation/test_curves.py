"""Deletion, insertion and region perturbation against loops over single images, torch-cam, and answers by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fastviz.evaluation import deletion, insertion, region_perturbation
from fastviz.evaluation._substrate import blurred
from fastviz.targets.objectives import class_probability, class_score, neuron

f64 = torch.float64


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(6, 5)).to(f64).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 12, 10, dtype=f64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def maps() -> Tensor:
    return torch.rand(4, 12, 10, dtype=f64, generator=torch.Generator().manual_seed(2))


class Sum(nn.Module):
    """Scores [N, 2]: a weighted sum of the pixels, and zero; its truth is known."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        score = (x.sum(1) * self.weights).sum((1, 2))
        return torch.stack([score, torch.zeros_like(score)], 1)


def by_definition(
    model: nn.Module, x: Tensor, maps: Tensor, k: int, step: int, other: Tensor, *, reveal: bool
) -> list[list[float]]:
    """The probabilities of class k, image by image and step by step."""
    curves = []
    for image, heat, substitute in zip(x, maps, other.expand_as(x), strict=True):
        start, end = (substitute, image) if reveal else (image, substitute)
        changed, order = start.clone().flatten(1), heat.flatten().argsort(descending=True, stable=True)
        curve = [float(model(start[None])[0].softmax(0)[k])]
        for first in range(0, len(order), step):
            pixels = order[first : first + step]
            changed[:, pixels] = end.flatten(1)[:, pixels]
            curve.append(float(model(changed.reshape(1, *image.shape))[0].softmax(0)[k]))
        curves.append(curve)
    return curves


@pytest.mark.parametrize("step", [1, 7, 120, 500])
def test_equal_to_the_definition(model, x, maps, step):
    zeros = torch.zeros_like(x)
    found = deletion(model, x, maps, 2, step=step)
    expected = torch.tensor(by_definition(model, x, maps, 2, step, zeros, reveal=False), dtype=f64)
    torch.testing.assert_close(found.values, expected)
    shown = insertion(model, x, maps, 2, step=step, batch_size=3)
    expected = torch.tensor(by_definition(model, x, maps, 2, step, blurred(x), reveal=True), dtype=f64)
    torch.testing.assert_close(shown.values, expected)


def test_a_step_that_is_a_share_of_the_pixels(model, x, maps):
    torch.testing.assert_close(
        deletion(model, x, maps, 2, step=0.1).values, deletion(model, x, maps, 2, step=12).values
    )
    found = deletion(model, x, maps, 2, step=1 / 7, regions=4)  # 9 windows: 2 at a time
    torch.testing.assert_close(found.values, deletion(model, x, maps, 2, step=2, regions=4).values)


def test_answers_by_hand():
    """Two pixels of weight 2 and 1, each 1: probabilities are sigmoids of 3, 1 (or 2) and 0."""
    model, x = Sum(torch.tensor([[2.0, 1.0]])), torch.ones(1, 1, 1, 2)
    s = lambda score: 1 / (1 + math.exp(-score))  # noqa: E731
    found = deletion(model, x, torch.tensor([[[5.0, 4.0]]]), 0, step=1)
    torch.testing.assert_close(found.values, torch.tensor([[s(3), s(1), s(0)]]))
    torch.testing.assert_close(found.fractions, torch.tensor([[0.0, 0.5, 1.0]]))
    torch.testing.assert_close(found.area, torch.tensor([(s(3) / 2 + s(1) + s(0) / 2) / 2]))
    torch.testing.assert_close(found.aopc, torch.tensor([(0 + s(3) - s(1) + s(3) - s(0)) / 3]))
    scores = deletion(model, x, torch.tensor([[[4.0, 5.0]]]), 0, step=1, value="target")
    assert scores.values.tolist() == [[3.0, 2.0, 0.0]]
    assert scores.clean.tolist() == [3.0]


def test_identities(model, x, maps):
    """Nothing deleted is the image, all inserted too; all deleted and nothing inserted is the substrate."""
    clean = model(x).softmax(1)[:, 1]
    gone = model(torch.zeros_like(x)).softmax(1)[:, 1]
    taken, shown = deletion(model, x, maps, 1), insertion(model, x, maps, 1, substrate=0.0)
    for curve, ends in ((taken, (clean, gone)), (shown, (gone, clean))):
        torch.testing.assert_close(curve.values[:, 0], ends[0])
        torch.testing.assert_close(curve.values[:, -1], ends[1])
        torch.testing.assert_close(curve.clean, clean)
        assert curve.fractions[0].tolist() == pytest.approx([step / 12 for step in range(13)])
    # the highest taken away first is the lowest shown first, read backwards
    backwards = insertion(model, x, -maps, 1, substrate=0.0).values.flip(1)
    torch.testing.assert_close(taken.values, backwards)


def test_the_truth_of_a_planted_network_is_best_and_a_random_map_is_between():
    weights = torch.rand(16, 16, generator=torch.Generator().manual_seed(4))
    model, x = Sum(weights / 20), torch.ones(1, 1, 16, 16)
    random = torch.rand(30, 16, 16, generator=torch.Generator().manual_seed(5))
    many = x.expand(30, -1, -1, -1)

    def areas(maps: Tensor, images: Tensor = x) -> tuple[Tensor, Tensor]:
        taken = deletion(model, images, maps, 0, step=8, value="target")
        return taken.area, insertion(model, images, maps, 0, step=8, substrate=0.0, value="target").area

    best, worst, chance = areas(weights[None]), areas(-weights[None]), areas(random, many)
    assert float(best[0]) < float(chance[0].min()) <= float(chance[0].max()) < float(worst[0])
    assert float(best[1]) > float(chance[1].max()) >= float(chance[1].min()) > float(worst[1])
    # a random order takes the same share of the score as of the pixels: half of it on the average
    half = float(weights.sum()) / 20 / 2
    assert float(chance[0].mean()) == pytest.approx(half, rel=0.02)


def test_ties_and_coarse_maps_and_channels(model, x):
    flat = torch.zeros(4, 12, 10, dtype=f64)
    first, last = (deletion(model, x, flat, 0, ties=ties).values for ties in ("first", "last"))
    rows = torch.arange(120, dtype=f64).reshape(1, 12, 10).expand(4, -1, -1)
    torch.testing.assert_close(first, deletion(model, x, -rows, 0).values)
    torch.testing.assert_close(last, deletion(model, x, rows, 0).values)
    coarse = torch.rand(4, 3, 5, dtype=f64, generator=torch.Generator().manual_seed(7))
    fine = nn.functional.interpolate(coarse[:, None], (12, 10), mode="bilinear")[:, 0]
    torch.testing.assert_close(deletion(model, x, coarse, 0).values, deletion(model, x, fine, 0).values)
    signed = torch.randn(4, 3, 12, 10, dtype=f64, generator=torch.Generator().manual_seed(8))
    for word, map_ in (("max_abs", signed.abs().amax(1)), ("sum", signed.sum(1)), ("sum_abs", signed.abs().sum(1))):
        torch.testing.assert_close(
            deletion(model, x, signed, 0, channels=word).values, deletion(model, x, map_, 0).values
        )


@pytest.mark.parametrize("regions", [5, (4, 10), "segments"])
def test_regions_change_as_wholes(model, x, maps, regions):
    labels = torch.zeros(4, 12, 10, dtype=torch.long)
    if regions == "segments":
        labels = torch.randint(0, 6, (4, 12, 10), generator=torch.Generator().manual_seed(9))
        labels[0][labels[0] == 3] = 1  # an image without one of the segments
    else:
        height, width = (regions, regions) if isinstance(regions, int) else regions
        for row in range(12):
            for column in range(10):
                labels[:, row, column] = row // height * math.ceil(10 / width) + column // width
    found = deletion(model, x, maps, 2, regions=labels if regions == "segments" else regions)
    for image in range(4):
        present = labels[image].unique().tolist()
        means = {label: float(maps[image][labels[image] == label].mean()) for label in present}
        changed, curve, shares = x[image : image + 1].clone(), [float(found.clean[image])], [0.0]
        for label in sorted(present, key=lambda label: -means[label]):
            changed[:, :, labels[image] == label] = 0
            curve.append(float(model(changed)[0].softmax(0)[2]))
            shares.append(shares[-1] + float((labels[image] == label).sum()) / 120)
        steps = len(curve)
        assert found.values[image, :steps].tolist() == pytest.approx(curve)
        assert found.fractions[image, :steps].tolist() == pytest.approx(shares)
        expected = sum((curve[i] + curve[i + 1]) / 2 * (shares[i + 1] - shares[i]) for i in range(steps - 1))
        assert float(found.area[image]) == pytest.approx(expected)


def test_region_perturbation(model, x, maps):
    """MoRF and LeRF with a fixed substrate against deletion by windows; AOPC; noise from the seed alone."""
    morf = region_perturbation(model, x, maps, 2, regions=4, steps=5, substrate=0.5)
    lerf = region_perturbation(model, x, maps, 2, regions=4, steps=5, substrate=0.5, order="lerf")
    full = deletion(model, x, maps, 2, regions=4, substrate=0.5, value="target")
    other = deletion(model, x, -maps, 2, regions=4, substrate=0.5, value="target")
    torch.testing.assert_close(morf.values, full.values[:, :6])
    torch.testing.assert_close(lerf.values, other.values[:, :6])
    torch.testing.assert_close(morf.aopc, (full.values[:, :1] - full.values[:, :6]).mean(1))
    state = torch.get_rng_state()
    noisy = region_perturbation(model, x, maps, 2, regions=4, seed=3)
    again = region_perturbation(model, x[:2], maps[:2], 2, regions=4, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(noisy.values[:2], again.values)
    assert noisy.values.shape == (4, 10)  # 3 x 3 windows: fewer than 100 steps
    twice = region_perturbation(model, x, maps, 2, regions=4, seed=3, repeats=2)
    assert not torch.allclose(twice.values[:, 1:], noisy.values[:, 1:])


def test_targets_and_values(model, x, maps):
    predicted = model(x).argmax(1)
    by_class = deletion(model, x, maps, predicted)
    for target in (None, class_score(), class_probability(), class_probability(predicted)):
        torch.testing.assert_close(deletion(model, x, maps, target).values, by_class.values)
    scores = deletion(model, x, maps, predicted, value="target")
    torch.testing.assert_close(scores.clean, model(x).amax(1))
    difference = deletion(model, x, maps, class_score(1) - class_score(0))
    torch.testing.assert_close(difference.clean, model(x)[:, 1] - model(x)[:, 0])


def test_low_precision_gives_values_in_float32(model, x, maps):
    exact = deletion(model.float(), x.float(), maps, 2)
    low = deletion(model.bfloat16(), x.bfloat16(), maps, 2)
    assert low.values.dtype == low.area.dtype == low.fractions.dtype == torch.float32
    torch.testing.assert_close(low.values, exact.values, atol=0.02, rtol=0)


def test_no_image_and_the_model_as_it_was(model, x, maps):
    model.train()
    none = deletion(model, x[:0], maps[:0])
    assert none.values.shape[0] == 0
    assert none.area.shape == (0,)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    deletion(model, x, maps)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"maps": torch.rand(3, 12, 10)}, "maps should have one map for each of 4 images, got 3"),
        ({"maps": torch.full((4, 12, 10), torch.nan)}, "maps should be finite"),
        ({"maps": torch.rand(4, 120)}, r"maps should have shape \[N, h, w\]"),
        ({"step": 0}, "step should be at least 1, got 0"),
        ({"step": -0.5}, "step should be a whole number, got -0.5"),
        ({"target": [1, 2]}, "target should be one per sample for a measure, got 2"),
        ({"target": neuron("0", 1)}, "got one about '0'"),
        ({"target": 7}, "from 0 to 4"),
        ({"value": "score"}, "value should be one of 'probability', 'target'"),
        ({"substrate": "median"}, "substrate should be one of"),
        ({"substrate": torch.zeros(2)}, "substrate should have shape"),
        ({"regions": torch.zeros(3, 3, dtype=torch.long)}, "regions should have shape"),
        ({"regions": 0}, "regions should be at least 1"),
        ({"ties": "random"}, "ties should be one of"),
        ({"channels": "mean"}, "channels should be one of"),
        ({"spacing": "even"}, "spacing should be one of"),
        ({"batch_size": 0}, "batch_size should be at least 1"),
    ],
)
def test_what_is_refused(model, x, maps, options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        deletion(model, x, **({"maps": maps} | options))


@pytest.mark.parametrize("steps", [20, 7, 200])
def test_torch_cam_gives_the_same(steps):
    """torch-cam's deletion and insertion of a fixed map; its zeros stand for the substrate of both."""
    metrics = pytest.importorskip("torchcam.metrics")
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6)).eval()
    x, coarse = torch.randn(3, 3, 18, 14), torch.rand(3, 6, 5)
    extractor = Extractor(model, coarse)
    theirs = metrics.DeletionInsertionMetric(extractor, partial(torch.softmax, dim=-1), steps=steps)
    theirs.update(x, [1, 2, 3])
    summary, step = theirs.summary(), math.ceil(18 * 14 / steps)
    options = {"target": torch.tensor([1, 2, 3]), "step": step, "substrate": 0.0}
    assert float(deletion(model, x, coarse, **options).area.mean()) == pytest.approx(summary["deletion_auc"], abs=1e-6)
    shown = insertion(model, x, coarse, **options)
    assert float(shown.area.mean()) == pytest.approx(summary["insertion_auc"], abs=1e-6)


class Extractor:
    """What torch-cam's metrics ask of a CAM extractor, with maps that are given."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *arguments: object, **options: object) -> list[Tensor]:
        return [self.maps.clone()]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> object:
        from contextlib import nullcontext

        return nullcontext()
