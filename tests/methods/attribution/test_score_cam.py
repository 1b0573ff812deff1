"""Score-CAM: by definition, pytorch-grad-cam number for number, one pass for dead channels, the steps of a trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastviz as fv
from fastviz.engine.incremental import whole
from fastviz.images import tensors

f64 = torch.float64


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(True), nn.Conv2d(6, 7, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 5),
    ).eval()  # fmt: skip


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 16, 19, dtype=f64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_by_definition(x: Tensor, batch_size: int | None) -> None:
    model = network().to(f64)
    found = fv.score_cam(model, x, [2, 0], layer="3", batch_size=batch_size)
    with torch.no_grad():
        maps = model[:4](x)
        masks = F.interpolate(maps, x.shape[2:], mode="bilinear", align_corners=True)
        for n in range(2):
            scores = []
            for mask in masks[n]:
                scaled = (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)
                scores.append(model(x[n : n + 1] * scaled)[0])
            weights = torch.stack(scores).softmax(0)
            for t, k in enumerate((2, 0)):
                expected = (weights[:, k, None, None] * maps[n]).sum(0).relu()
                torch.testing.assert_close(found[n, t], expected)


@pytest.mark.parametrize("category", [None, 2])
def test_pytorch_grad_cam_gives_the_same(x: Tensor, category: int | None) -> None:
    theirs = pytest.importorskip("pytorch_grad_cam")
    target = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    model = network().to(f64)
    chosen = None if category is None else [target(category)] * 2
    expected = theirs.ScoreCAM(model, [model[3]])(x, chosen)
    found = fv.score_cam(model, x, category, layer="3", size=(16, 19))
    np.testing.assert_allclose(tensors.normalize(found).numpy(), expected, atol=1e-5)


def test_dead_channels_share_one_pass(x: Tensor) -> None:
    model = network().to(f64)
    with torch.no_grad():
        model[2].bias[1:5] = -1e3
    seen: list[int] = []
    model[6].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    found = fv.score_cam(model, x[:1], 2, layer="3", batch_size=100)
    assert seen[-2:] == [3, 1]
    assert found.any()
    model[2].bias.data[:] = -1e3
    assert not fv.score_cam(model, x, 2, layer="3").any()


def test_the_steps_of_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs for many images gives what the model gives; a model that changed since is not mistaken for itself."""
    monkeypatch.setattr(whole, "_LEAST_WORK", 0.0)
    model, images = network(), torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    for scale in (1.0, 3.0):
        with torch.no_grad():
            model[6].weight *= scale
            run = whole.WholeImages(model, images[:1], len(images))
            assert run.stepwise
            torch.testing.assert_close(torch.cat(run(images)), model(images), rtol=1e-4, atol=1e-5)
    monkeypatch.undo()
    with torch.no_grad():
        assert not whole.WholeImages(network(), images[:1], 9).stepwise


def test_models_that_mix_images(x: Tensor) -> None:
    """A batch norm without statistics of its own: every masked image goes alone."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).to(f64).eval()  # fmt: skip
    together = fv.score_cam(model, x, 1, layer="2")
    torch.testing.assert_close(together[:1], fv.score_cam(model, x[:1], 1, layer="2", batch_size=1))
    assert fv.ablation_cam(model, x, 1, layer="0").shape == (2, 14, 17)
