"""Scores over masks and at pixels, against values worked by hand and torchvision's segmentation networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fastviz as fv

f64 = torch.float64

MAPS = torch.arange(2 * 2 * 2 * 3, dtype=f64).reshape(2, 2, 2, 3)

MASK = torch.tensor([[True, False, False], [False, False, True]])


class Answer:
    """What transformers' models return."""

    logits = MAPS


@pytest.mark.parametrize("output", [MAPS, {"out": MAPS, "aux": -MAPS}, {"segmentation": MAPS}, (MAPS, 3), Answer()])
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (fv.region_score(1, MASK), [(6 + 11) / 2, (18 + 23) / 2]),
        (fv.region_score(0, MASK.double() * torch.tensor([3.0, 1, 1])), [(3 * 0 + 5) / 4, (3 * 12 + 17) / 4]),
        (fv.region_score(torch.tensor([0, 1]), MASK), [2.5, 20.5]),
        (fv.region_score(0, torch.stack([MASK, ~MASK])), [2.5, (13 + 14 + 15 + 16) / 4]),
        (fv.region_score(0, MASK[None].long()), [2.5, 14.5]),
        (fv.pixel(1, 0, 2), [8, 20]),
        (fv.pixel(1, torch.tensor([0, 1]), 2), [8, 23]),
        (fv.pixel(torch.tensor([1, 0]), 0, torch.tensor([0, 1])), [6, 13]),
        (2 * fv.pixel(1, 0, 2) - fv.region_score(1, MASK), [7.5, 19.5]),
        (fv.region_score(0, MASK & False), [0, 0]),
    ],
)
def test_values(output: object, target: fv.Objective, expected: list[float]) -> None:
    assert target.values(output, {}).tolist() == expected
    parts = target.parts
    assert parts is not None
    assert target.of_parts({key: taker.part(output) for key, taker in parts.items()}).tolist() == expected


def test_samples_keep_their_masks() -> None:
    target = fv.region_score(torch.tensor([1, 0]), torch.stack([MASK, ~MASK]))
    picked = target.for_samples(torch.tensor([1, 1, 0]), 2)
    values = picked.values(MAPS[[1, 1, 0]], {})
    assert values.tolist() == [14.5, 14.5, 8.5]


class Segmenter(nn.Module):
    """Scores at the size of the image, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        )
        self.head = nn.Conv2d(8, 4, 1)
        self.double()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.head(self.body(x))
        return {"out": nn.functional.interpolate(out, x.shape[2:], mode="bilinear", align_corners=False)}


def _definition(model: nn.Module, x: torch.Tensor, masks: torch.Tensor, k: int, window: int) -> torch.Tensor:
    """Scores under windows one by one: the plain loop."""
    rows = range(0, x.shape[2], window)
    scores = torch.empty(len(x), len(rows), len(rows), dtype=x.dtype)
    for n in range(len(x)):
        for i, top in enumerate(rows):
            for j, left in enumerate(rows):
                covered = x[n : n + 1].clone()
                covered[..., top : top + window, left : left + window] = 0
                with torch.no_grad():
                    scores[n, i, j] = model(covered)["out"][0, k][masks[n]].mean()
    return scores


@pytest.mark.usefixtures("traced")
def test_occlusion_over_a_mask_is_incremental_and_exact() -> None:
    torch.manual_seed(0)
    model, x = Segmenter(), torch.randn(2, 3, 32, 32, dtype=f64)
    masks = torch.rand(2, 32, 32) > 0.7
    expected = _definition(model, x, masks, 2, 8)
    for target, at in ((fv.region_score(2, masks), slice(None)), (fv.region_score(2, masks[1]), slice(1, None))):
        found = fv.occlusion(model, x[at], target, window=8, stride=8)
        assert found.stats["path"] == "incremental", found.stats["reason"]
        assert found.stats["predicted_gain"] > 1
        torch.testing.assert_close(found.scores, expected[at])
    both = fv.occlusion(model, x, [fv.region_score(2, masks), fv.pixel(2, 3, 4)], window=8, stride=8)
    torch.testing.assert_close(both.scores[:, 0], expected)
    assert both.stats["path"] == "incremental"


def test_one_trace_serves_all_masks_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastviz.engine.incremental import network

    made = []
    monkeypatch.setattr(network, "trace", lambda *given: made.append(1) or real(*given), raising=True)
    real = fv.graph.model_graph.trace  # type: ignore[attr-defined]
    model, x = Segmenter(), torch.randn(1, 3, 32, 32, dtype=f64)
    for number in range(3):
        mask = torch.zeros(32, 32, dtype=torch.bool)
        mask[number] = True
        fv.occlusion(model, x, fv.region_score(2, mask), window=8, trace="always")
    assert len(made) == 1


def test_an_empty_mask_gives_a_zero_map_and_says_so() -> None:
    model, x = Segmenter(), torch.randn(2, 3, 16, 16, dtype=f64)
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[1, 3, 3] = True
    target = fv.region_score(1, masks)
    calls: list[Any] = [
        lambda: fv.saliency(model, x, target),
        lambda: fv.grad_cam(model, x, target, layer="body.0"),
        lambda: fv.occlusion(model, x, target, window=4).attribution,
    ]
    for call in calls:
        with pytest.warns(UserWarning, match="the mask of the region is empty in 1 of 2 samples: their maps are zero"):
            found = call()
        assert not found[0].any()
        assert found[1].any()


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_torchvision_segmentation(name: str) -> None:
    """Every method on a network of torchvision with random weights, against autograd and the plain loop."""
    import torchvision

    torch.manual_seed(0)
    make = getattr(torchvision.models.segmentation, name)
    model = make(weights=None, weights_backbone=None, num_classes=4).eval()
    for module in model.modules():  # random statistics, so that values neither vanish nor explode
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.5
    model.double()
    x = torch.randn(1, 3, 48, 48, dtype=f64)
    mask = torch.zeros(1, 48, 48, dtype=torch.bool)
    mask[0, 8:30, 12:40] = True
    target = fv.region_score(2, mask[0])
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)["out"][0, 2][mask[0]].mean(), leaf)
    torch.testing.assert_close(fv.input_gradient(model, x, target), expected, rtol=1e-6, atol=1e-12)
    found = fv.occlusion(model, x, target, window=24, stride=24)
    torch.testing.assert_close(found.scores, _definition(model, x, mask, 2, 24), rtol=1e-7, atol=1e-12)
    heat = fv.grad_cam(model, x, target, layer="backbone.layer4" if "resnet" in name else "backbone.16")
    assert heat.dim() == 3
    assert heat.isfinite().all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fv.region_score(-1, MASK), ValueError, "k should be at least 0, got -1"),
        (lambda: fv.region_score(None, MASK), TypeError, "k should be a whole number or a tensor of them, got None"),
        (lambda: fv.region_score(1, [[True]]), TypeError, "mask should be a tensor, got list"),
        (lambda: fv.region_score(1, -MASK.float()), ValueError, "mask should hold finite weights of 0 or more"),
        (lambda: fv.region_score(1, 3 * MASK.long()), TypeError, "got torch.int64: give mask == class"),
        (lambda: fv.pixel(1, 0, -3), ValueError, "column should be at least 0, got -3"),
        (lambda: fv.pixel(1, 0.5, 3), TypeError, "row should be a whole number, got 0.5"),
    ],
)
def test_targets_refuse(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("target", "output", "error", "message"),
    [
        (fv.region_score(2, MASK), MAPS, ValueError, "k should be a class from 0 to 1, got 2"),
        (fv.region_score(1, MASK[:1]), MAPS, ValueError, r"mask should have the size of the model's maps, \[2, 3\]"),
        (fv.region_score(1, MASK.expand(3, 2, 3)), MAPS, ValueError, r"mask should be \[H, W\], or one per sample, 2"),
        (fv.pixel(1, 2, 0), MAPS, ValueError, "row should be a row of the model's maps from 0 to 1, got 2"),
        (fv.pixel(1, 0, 3), MAPS, ValueError, "column should be a column of the model's maps from 0 to 2, got 3"),
        (
            fv.pixel(1, 0, 0),
            MAPS[..., 0, 0],
            ValueError,
            r"maps of scores \[N, K, H, W\] for this target, got a tensor",
        ),
        (fv.pixel(1, 0, 0), {"a": MAPS, "b": MAPS}, TypeError, "got a dictionary of 'a', 'b'; fastviz.output"),
        (fv.pixel(1, 0, 0), [{"boxes": 1}], TypeError, "got a list of 1, the first a dictionary of 'boxes'"),
    ],
)
def test_values_refuse(target: fv.Objective, output: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        target.values(output, {})
