"""Average drop and increase in confidence: by hand, against torch-cam and pytorch-grad-cam."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fastviz.evaluation import confidence_change


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)


def test_by_hand():
    """Ones under a map of 0 to 1 whose mean is a half: the mean falls from 1 to 1/2, and 1 minus it rises from 0."""
    x, maps = torch.ones(1, 1, 1, 3), torch.tensor([[[2.0, 3.0, 4.0]]])
    found = confidence_change(Mean(), x, maps, 0, value="target")
    assert (found.before.tolist(), found.after.tolist(), found.average_drop, found.increase) == ([1], [0.5], 0.5, 0)
    other = confidence_change(Mean(), x, maps, 1, value="target")
    assert (other.drop.tolist(), other.increase) == ([0.0], 1.0)
    as_it_is = confidence_change(Mean(), x, maps, 0, value="target", scale="none")
    assert as_it_is.after.tolist() == [3.0]
    flat = confidence_change(Mean(), x, torch.full((1, 1, 3), 5.0), 0, value="target")
    assert flat.after.tolist() == [0.0]  # a constant map marks nothing


def test_a_map_of_ones_changes_nothing_and_the_truth_drops_least(model):
    x = torch.randn(5, 3, 12, 12)
    ones = torch.ones(5, 12, 12)
    kept = confidence_change(model, x, ones, scale="none")
    torch.testing.assert_close(kept.after, kept.before)
    assert kept.average_drop == pytest.approx(0, abs=1e-6)


def test_scale_before_or_after_resizing(model):
    x, coarse = torch.randn(2, 3, 12, 12), torch.rand(2, 3, 3)
    fine = nn.functional.interpolate(coarse[:, None], (12, 12), mode="bilinear")[:, 0]

    def by_hand(maps: Tensor) -> Tensor:
        return model(x * maps[:, None]).softmax(1)[:, 1].detach()

    def scaled(maps: Tensor) -> Tensor:
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        return (maps - low) / (high - low)

    first = nn.functional.interpolate(scaled(coarse)[:, None], (12, 12), mode="bilinear")[:, 0]
    torch.testing.assert_close(confidence_change(model, x, coarse, 1).after, by_hand(first))
    torch.testing.assert_close(confidence_change(model, x, coarse, 1, scale="image").after, by_hand(scaled(fine)))


def test_torch_cam_gives_the_same(model):
    metrics = pytest.importorskip("torchcam.metrics")
    core = pytest.importorskip("torchcam.methods.core")
    x, maps = torch.randn(7, 3, 16, 12), torch.rand(7, 4, 3)

    class Extractor:
        def __call__(self, *arguments: object, **options: object) -> list[Tensor]:
            return [core._CAM._normalize(maps.clone(), 2)]

        def fuse_cams(self, cams: list[Tensor]) -> Tensor:
            return cams[0]

        def _hooks_off(self) -> object:
            from contextlib import nullcontext

            return nullcontext()

    extractor = Extractor()
    extractor.model = model
    theirs = metrics.ClassificationMetric(extractor, partial(torch.softmax, dim=-1))
    theirs.update(x)
    summary, found = theirs.summary(), confidence_change(model, x, maps)
    assert found.average_drop == pytest.approx(summary["avg_drop"], abs=1e-5)
    assert found.increase == pytest.approx(summary["conf_increase"])


def test_pytorch_grad_cam_gives_the_same(model):
    metric = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    x, maps = torch.randn(4, 3, 10, 10), torch.rand(4, 10, 10)
    chosen = [targets.ClassifierOutputSoftmaxTarget(k) for k in (0, 1, 2, 3)]
    found = confidence_change(model, x, maps, torch.arange(4), scale="none")
    change = metric.CamMultImageConfidenceChange()(x, maps.numpy(), chosen, model)
    assert (found.after - found.before).tolist() == pytest.approx(change.tolist(), abs=1e-6)
    drop = metric.DropInConfidence()(x, maps.numpy(), chosen, model)
    assert (found.before - found.after).clamp(min=0).tolist() == pytest.approx(drop.tolist(), abs=1e-6)
    increase = metric.IncreaseInConfidence()(x, maps.numpy(), chosen, model)
    assert found.increased.float().tolist() == increase.tolist()


def test_what_is_refused(model):
    with pytest.raises(ValueError, match="scale should be one of 'map', 'image', 'none'"):
        confidence_change(model, torch.rand(1, 3, 8, 8), torch.rand(1, 8, 8), scale="max")
