"""ROAD: the solver against a direct one and answers by hand, the measure against pytorch-grad-cam."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastviz.evaluation import _imputation, road
from fastviz.evaluation.road import impute

f64 = torch.float64
WEIGHTS = {(dy, dx): 1 / 12 if dy and dx else 1 / 6 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx}


def directly(image: Tensor, removed: Tensor) -> Tensor:
    """One image [C, H, W] filled in by a dense solver, an equation a removed pixel, in float64."""
    places = removed.nonzero().tolist()
    number = {tuple(place): index for index, place in enumerate(places)}
    matrix, right = np.zeros((len(places), len(places))), np.zeros((len(places), len(image)))
    for row, (y, x) in enumerate(places):
        for (dy, dx), weight in WEIGHTS.items():
            there = (y + dy, x + dx)
            if not (0 <= there[0] < image.shape[1] and 0 <= there[1] < image.shape[2]):
                continue
            matrix[row, row] += weight
            if there in number:
                matrix[row, number[there]] -= weight
            else:
                right[row] += weight * image[:, there[0], there[1]].double().numpy()
    filled = image.double().clone()
    filled[:, removed] = torch.from_numpy(np.linalg.solve(matrix, right).T.copy())
    return filled


def test_by_hand():
    """Between 0 and 3 in a row lie 1 and 2; a hole in a plane is filled with the plane."""
    row = torch.tensor([[[[0.0, 9.0, 9.0, 3.0]]]])
    found = impute(row, torch.tensor([[[False, True, True, False]]]))
    torch.testing.assert_close(found, torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]]))
    plane = torch.arange(7.0)[:, None] + 2 * torch.arange(9.0)
    hole = torch.zeros(1, 7, 9, dtype=torch.bool)
    hole[0, 2:5, 3:7] = True
    broken = torch.where(hole, 100.0, plane)[:, None]
    torch.testing.assert_close(impute(broken, hole)[0, 0], plane, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (13, 17), (32, 32), (33, 20)])
@pytest.mark.parametrize("kind", ["scattered", "blocks", "all but one"])
def test_equal_to_a_direct_solver(size, kind):
    generator = torch.Generator().manual_seed(sum(size))
    images = 3 * torch.randn(5, 3, *size, generator=generator)
    if kind == "scattered":
        removed = torch.rand(5, *size, generator=generator) < torch.tensor([0.1, 0.4, 0.6, 0.9, 0.97])[:, None, None]
    elif kind == "blocks":
        coarse = torch.rand(5, 1, 2, 2, generator=generator)
        smooth = nn.functional.interpolate(coarse, size, mode="bilinear")[:, 0]
        removed = smooth > smooth.flatten(1).quantile(0.3, dim=1)[:, None, None]
    else:
        removed = torch.ones(5, *size, dtype=torch.bool)
        removed[:, size[0] // 2, 0] = False
    removed[removed.flatten(1).all(1)] = False
    found = impute(images, removed)
    for image, mask, filled in zip(images, removed, found, strict=True):
        torch.testing.assert_close(filled.double(), directly(image, mask), atol=1e-5, rtol=0)
    exact = impute(images.double(), removed)
    torch.testing.assert_close(exact.float(), found, atol=2e-5, rtol=0)


def test_nothing_and_everything_removed_and_any_scale():
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    none, every = torch.zeros(2, 6, 6, dtype=torch.bool), torch.ones(2, 6, 6, dtype=torch.bool)
    assert torch.equal(impute(images, none), images)
    torch.testing.assert_close(impute(images, every), images.mean((2, 3), keepdim=True).expand_as(images))
    some = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(impute(scale * images, some) / scale, impute(images, some), atol=1e-5, rtol=0)
    half = impute(images.half(), some)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), impute(images, some), atol=5e-3, rtol=0)
    flat = torch.zeros(1, 3, 6, 6)
    assert torch.equal(impute(flat, some[:1]), flat)


def test_both_solvers_give_the_same():
    """The native loop of a CPU, and what a GPU runs."""
    images = torch.randn(2, 3, 20, 33, generator=torch.Generator().manual_seed(3))
    removed = torch.rand(2, 20, 33, generator=torch.Generator().manual_seed(4)) < 0.8
    together = _imputation._solved(images, removed).float()
    torch.testing.assert_close(together, impute(images, removed), atol=1e-5, rtol=0)


def test_a_large_hole_is_filled_in_to_the_accuracy_that_is_promised():
    """All but a frame of 224x224: the slowest case for a solver."""
    image = torch.randn(1, 1, 224, 224, dtype=f64, generator=torch.Generator().manual_seed(5))
    removed = torch.zeros(1, 224, 224, dtype=torch.bool)
    removed[:, 1:-1, 1:-1] = True
    found = impute(image, removed)
    around = nn.functional.conv2d(found, torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]], dtype=f64)[None, None] / 12)
    # what is left of each equation is far smaller than the error, of which the promise is 1e-6 of the largest value
    assert float((around - found[:, :, 1:-1, 1:-1]).abs().max()) < 1e-6


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_nine_tenths_of_many_pictures(device):
    """Quantus #332: 6 s for one image of 224x224, on a GPU as on a CPU; here many at once, on their device."""
    images = torch.randn(6, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    removed = (torch.rand(6, 224, 224, generator=torch.Generator().manual_seed(1)) < 0.9).to(device)
    found = impute(images, removed)
    assert found.device == images.device
    there = ~removed[:, None].expand_as(images)
    assert torch.equal(found[there], images[there])
    ring = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]], dtype=f64, device=device)[None, None] / 12
    planes = found.double().flatten(0, 1)[:, None]
    around, weight = (nn.functional.conv2d(each, ring, padding=1) for each in (planes, torch.ones_like(planes)))
    error = (around / weight - planes).view_as(found)[~there].abs()
    assert float(error.max()) < 1e-5 * float(images.abs().max())


@pytest.mark.cuda
def test_a_gpu_gives_the_same(model):
    x, maps = torch.randn(3, 3, 20, 16), torch.rand(3, 20, 16)
    removed = torch.rand(3, 20, 16) < 0.8
    torch.testing.assert_close(impute(x.cuda(), removed.cuda()).cpu(), impute(x, removed), atol=1e-5, rtol=0)
    expected = road(model, x, maps, 1)
    found = road(model.cuda(), x.cuda(), maps.cuda(), 1)
    torch.testing.assert_close(found.combined.cpu(), expected.combined, atol=1e-3, rtol=0)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4)).eval()


def test_pytorch_grad_cam_gives_the_same(model, monkeypatch):
    reference = pytest.importorskip("pytorch_grad_cam.metrics.road")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    monkeypatch.setattr(reference.torch, "randn_like", torch.zeros_like)  # without noise, which is drawn otherwise
    x, maps = torch.randn(3, 3, 20, 16), torch.rand(3, 20, 16)
    classes, percentiles = [0, 3, 1], [15, 50, 90]
    chosen = [targets.ClassifierOutputSoftmaxTarget(k) for k in classes]
    cams = maps.numpy()
    found = road(model, x, maps, torch.tensor(classes), removed=[85, 50, 10], noise=0, removal="threshold")
    combined = reference.ROADCombined(percentiles)(x, cams, chosen, model)
    assert found.combined.tolist() == pytest.approx(combined.tolist(), abs=2e-6)
    for curve, rival in (
        (found.morf, reference.ROADMostRelevantFirstAverage),
        (found.lerf, reference.ROADLeastRelevantFirstAverage),
    ):
        expected = rival(percentiles)(x, cams, chosen, model)
        assert (curve - found.clean[:, None]).mean(1).tolist() == pytest.approx(expected.tolist(), abs=2e-6)


def test_against_the_definition(model):
    """One image and one percentage after another."""
    x, maps = torch.randn(2, 3, 10, 12), torch.rand(2, 10, 12)
    found = road(model, x, maps, 1, removed=[30, 70], noise=0, batch_size=3)
    for image in range(2):
        order = maps[image].flatten().argsort(descending=True)
        for at, share in enumerate((0.3, 0.7)):
            for values, ranked in ((found.morf, order), (found.lerf, order.flip(0))):
                mask = torch.zeros(120, dtype=torch.bool)
                mask[ranked[: round(share * 120)]] = True
                filled = directly(x[image], mask.reshape(10, 12)).float()[None]
                assert float(values[image, at]) == pytest.approx(float(model(filled).softmax(1)[0, 1]), abs=1e-5)


def test_noise_comes_from_the_seed_and_only_to_what_was_removed(model):
    x, maps = torch.randn(3, 3, 10, 12), torch.rand(3, 10, 12)
    state = torch.get_rng_state()
    one, same = road(model, x, maps, 1, seed=4), road(model, x[:2], maps[:2], 1, seed=4)
    other = road(model, x, maps, 1, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(one.morf[:2], same.morf)
    assert not torch.equal(one.morf, other.morf)
    quiet = road(model, x, maps, 1, noise=0)
    assert 0 < float((one.morf - quiet.morf).abs().max()) < 0.05


def test_ties_are_removed_together_by_threshold_only(model):
    """A map of zeros with a bright corner: by threshold, 10 per cent of the zeros are all zeros."""
    x, maps = torch.randn(1, 3, 10, 10), torch.zeros(1, 10, 10)
    maps[:, :3, :3] = torch.rand(3, 3) + 1
    found = road(model, x, maps, 0, removed=[10], noise=0, removal="threshold")
    all_zeros = impute(x, maps == 0)
    assert float(found.lerf) == pytest.approx(float(model(all_zeros).softmax(1)[0, 0]), abs=1e-5)
    exact = road(model, x, maps, 0, removed=[10], noise=0)
    assert float(exact.lerf) != pytest.approx(float(found.lerf), abs=1e-6)


def test_planted_truth_is_best_and_a_random_map_near_zero():
    """A network that reads one window of smooth noise: only a map that names the window is good."""
    torch.manual_seed(0)

    class Window(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = x[:, 0, 8:16, 8:16].square().mean((1, 2))
            return torch.stack([4 * score, torch.ones_like(score)], 1)

    x = torch.randn(12, 1, 24, 24)
    truth = torch.rand(12, 24, 24) * 0.1
    truth[:, 8:16, 8:16] += 1
    best, chance = (road(Window(), x, maps, 0, removed=[11, 50]).combined for maps in (truth, torch.rand(12, 24, 24)))
    worst = road(Window(), x, -truth, 0, removed=[11, 50]).combined
    assert float(best.min()) > float(chance.max())
    assert abs(float(chance.mean())) < 0.05
    torch.testing.assert_close(worst, -best, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"removed": []}, "at least one percentage"),
        ({"removed": [0]}, "above 0 and below 100 per cent, got 0"),
        ({"removed": [100]}, "above 0 and below 100 per cent, got 100"),
        ({"removal": "exact"}, "removal should be one of 'rank', 'threshold'"),
        ({"noise": -1}, "noise should be finite and above 0"),
        ({"target": [1, 2]}, "target should be one per sample"),
    ],
)
def test_what_is_refused(model, options, words):
    with pytest.raises(ValueError, match=words):
        road(model, torch.rand(1, 3, 8, 8), torch.rand(1, 8, 8), **({"target": 0} | options))
    with pytest.raises(ValueError, match="images should be finite"):
        road(model, torch.full((1, 3, 8, 8), torch.nan), torch.rand(1, 8, 8), 0)
    with pytest.raises(ValueError, match=r"removed should have shape \[1, 8, 8\]"):
        impute(torch.rand(1, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.bool))
