"""What users of the neighbouring tools ran into with targets, tokens, signals, volumes and drawing, one test each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz import images
from fastviz.images import drawing

f64 = torch.float64


def classifier(channels: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    body = (nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


# --------------------------------------------------------------------------------------------------------- targets


def test_masks_pixels_and_boxes() -> None:
    """captum #872, #708, #227; detectron2 #3850. Boxes and torchvision's networks: tests/targets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)).to(f64)
    x = torch.randn(1, 3, 12, 12, dtype=f64)
    mask = model(x).argmax(1) == 2
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[0, 2][mask[0]].mean(), leaf)
    torch.testing.assert_close(fv.input_gradient(model, x, fv.region_score(2, mask)), expected)
    # one pixel: the gradient ends where its window does
    found = fv.input_gradient(model, x, fv.pixel(2, 5, 6))
    assert found[..., 4:7, 5:8].any()
    assert not found[..., :4, :].any()
    assert not found[..., 8:].any()


def test_every_family_of_methods_takes_them() -> None:
    """A mask's score in gradients, class activation maps, occlusion, maximisation, attacks and measures."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    x = torch.rand(1, 3, 12, 12)
    target = fv.region_score(2, torch.ones(12, 12, dtype=torch.bool)) - 0.5 * fv.pixel(1, 3, 3)
    for method in (fv.saliency, fv.guided_backprop, fv.smooth_grad, fv.grad_cam, fv.guided_grad_cam):
        assert method(model, x, target).isfinite().all()
    assert fv.occlusion(model, x, target, window=4).attribution.shape == (1, 12, 12)
    made = fv.maximize(model, target, size=12, steps=4, seed=0)
    black = torch.zeros(1, 3, 12, 12)
    assert target.values(model(made.images), {}) > target.values(model(black), {})
    curve = fv.evaluation.deletion(model, x, fv.saliency(model, x, target), target, step=0.25)
    assert curve.values[0, 0] == pytest.approx(float(target.values(model(x), {})))


def test_outputs_in_dictionaries_and_tuples() -> None:
    """pytorch-grad-cam #121, #156: objectives of layers work, and functions read anything."""

    class Wrapped(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.net, self.kind = classifier().to(f64), kind

        def forward(self, x: Tensor) -> Any:
            scores = self.net(x)
            return {"scores": scores, "x": x} if self.kind == "dictionary" else (scores, [x])

    x = torch.randn(2, 3, 10, 10, dtype=f64)
    expected = fv.saliency(classifier().to(f64), x, 1)
    for kind, key in (("dictionary", "scores"), ("tuple", 0)):
        model = Wrapped(kind)
        torch.testing.assert_close(fv.saliency(model, x, fv.output(lambda out, key=key: out[key][:, 1])), expected)
        assert fv.saliency(model, x, fv.channel("net.2", 3)).any()


# --------------------------------------------------------------------------------------------------- maps of zeros


def test_maps_of_zeros_are_zeros() -> None:
    """pytorch-grad-cam #214, #108; torch-cam #186, #152: a constant layer, negative gradients, dead rectifiers."""
    x = torch.randn(1, 3, 10, 10)
    constant, negative, dead = classifier(), classifier(), classifier()
    with torch.no_grad():
        constant[2].weight.zero_()
        negative[6].weight.copy_(-negative[6].weight.abs())
        dead[2].weight.zero_()
        dead[2].bias.fill_(-1.0)
    with pytest.warns(UserWarning, match="gradient of zero everywhere at layer '2'"):
        assert not fv.grad_cam(dead, x, 1, layer="2").any()
    for model in (constant, negative, dead):
        found = fv.grad_cam(model, x, 1)
        assert found.isfinite().all()
        picture = drawing.draw("heat", found[0], torch.rand(3, 40, 40), coarse=True)
        assert picture.isfinite().all()
        assert fv.images.overlay(torch.rand(1, 3, 40, 40), fv.images.normalize(found)).isfinite().all()
    assert not fv.grad_cam(negative, x, 1).any()


# --------------------------------------------------------------------------------------------- signals and volumes


def test_a_signal() -> None:
    """pytorch-grad-cam #518, #233."""
    torch.manual_seed(0)
    body = (nn.Conv1d(1, 4, 5), nn.BatchNorm1d(4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    model, x = nn.Sequential(*body, nn.Linear(4, 2)).eval(), torch.randn(2, 1, 60)
    assert fv.saliency(model, x, 1).shape == (2, 60)
    assert fv.grad_cam(model, x, 1).shape == (2, 56)


def test_a_volume_of_30_16_16() -> None:
    """pytorch-grad-cam #345, #497; torch-cam #207; MONAI #5230."""
    torch.manual_seed(0)
    body = (nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    model, x = nn.Sequential(*body, nn.Linear(4, 2)).eval(), torch.randn(1, 1, 30, 16, 16)
    assert fv.saliency(model, x, 1).shape == (1, 30, 16, 16)
    assert fv.grad_cam(model, x, 1).shape == (1, 30, 16, 16)
    assert images.draw_volume(x[0], fv.saliency(model, x, 1)[0], "heat").shape[0] == 3
    whole = fv.occlusion(model, x, 1, window=4, stride=4)
    assert whole.attribution.shape == (1, 30, 16, 16)
    # only a box of the volume on request: its windows are those of the box, and no others are computed
    box = fv.occlusion(model, x, 1, window=4, stride=4, region=(8, 4, 4, 20, 12, 12))
    assert box.attribution.shape == (1, 12, 8, 8)
    torch.testing.assert_close(box.scores, whole.scores[:, 2:5, 1:3, 1:3])
    torch.testing.assert_close(box.attribution, whole.attribution[:, 8:20, 4:12, 4:12])
    assert box.stats["windows"] == 3 * 2 * 2


# --------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_drawings_have_the_size_of_their_picture(channels: int, tmp_path: Path) -> None:
    """captum #1056, #1053, #372: no display, the picture's own size, one channel and four."""
    model, x = classifier(channels), torch.rand(1, channels, 30, 45)
    heat, gradient = fv.saliency(model, x, 1), fv.input_gradient(model, x, 1)
    for draws, attribution in (("heat", heat[0]), ("signed", gradient[0, 0]), ("gradient", gradient[0])):
        picture = drawing.draw(draws, attribution, x[0])
        assert picture.shape == (3, 30, 45)
        images.save_image(picture, tmp_path / f"{draws}.png")
        assert images.read_image(tmp_path / f"{draws}.png").shape[-2:] == (30, 45)
    assert fv.images.overlay(x, fv.images.normalize(heat)).shape == (1, 3, 30, 45)
    assert fv.images.grid(x.expand(4, -1, -1, -1), padding=0).shape == (3, 60, 90)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_of_16_bits_are_drawn(dtype: torch.dtype) -> None:
    """pytorch-grad-cam #329, #493, #96: float32, which NumPy takes. All methods: tests/methods/test_other_models.py."""
    model, x = classifier().to(dtype), torch.rand(1, 3, 30, 30).to(dtype)
    found = fv.grad_cam(model, x, 1)
    assert found.dtype == torch.float32
    assert found.numpy().any()
    picture = drawing.draw("heat", found[0], x[0].float(), coarse=True)
    assert picture.dtype == torch.float32
    assert picture.isfinite().all()


# ------------------------------------------------------------------------------------------------------- many passes


def test_one_picture_of_45x90_with_4_channels() -> None:
    """nolearn #218: windows centred on pixels, of a picture that is no square; against a loop."""
    model = classifier(4).to(f64)
    x = torch.randn(1, 4, 45, 90, dtype=f64)
    found = fv.occlusion(model, x, 1, window=15, stride=15, centred=True)
    expected = []
    with torch.no_grad():
        for row in range(0, 45, 15):
            for column in range(0, 90, 15):
                covered = x.clone()
                covered[:, :, max(0, row - 7) : row + 8, max(0, column - 7) : column + 8] = 0
                expected.append(model(covered)[0, 1])
    torch.testing.assert_close(found.scores, torch.stack(expected).view(1, 3, 6))
    assert found.attribution.shape == (1, 45, 90)


def test_a_deletion_curve_costs_one_row_per_step() -> None:
    """Quantus #96, #350: 100 steps cost at most the rows of 101 passes, in batches and not one by one."""
    model, x = classifier(), torch.rand(1, 3, 64, 64)
    maps, passes = fv.saliency(model, x, 1), []
    model.register_forward_pre_hook(lambda module, given: passes.append(len(given[0])))
    curve = fv.evaluation.deletion(model, x, maps, 1, step=0.01)
    assert curve.values.shape == (1, 101)
    assert sum(passes) <= 101 + 4  # what looks at the model first
    assert len(passes) < 30


def test_a_deletion_curve_computes_what_changes(traced: None) -> None:
    """The same: where a step is a window, only what it changes is computed, and the network itself hardly runs."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.rows = classifier(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.rows += x.shape[0]
            return self.inner(x)

    model, x = Counting().eval(), torch.rand(1, 3, 64, 64)
    curve = fv.evaluation.deletion(model, x, fv.saliency(model, x, 1), 1, regions=6)
    assert curve.values.shape == (1, 122)
    assert model.rows < 30
    covered = torch.zeros_like(x)
    assert curve.values[0, -1] == pytest.approx(float(model(covered).softmax(1)[0, 1]), abs=1e-5)
