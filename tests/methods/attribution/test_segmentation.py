"""GrabCut seeded from saliency: quantiles, colours learned, the largest part, boxes, what has nothing to find."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastviz.execution.rectifiers import RectifierWarning
from fastviz.methods.attribution.gradients import guided_backprop, saliency
from fastviz.methods.attribution.segmentation import _boxes, _seeds, _smoothed, segment

cv2 = pytest.importorskip("cv2")

NONE = nn.Identity()


def planted(size: tuple[int, int] = (40, 48)) -> tuple[Tensor, Tensor]:
    """A red rectangle on a blue-green ground with some noise, and a saliency that knows a part of it."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.zeros(1, 3, *size)
    picture[:, 1], picture[:, 2] = 0.4, 0.7
    picture[:, :, 10:30, 12:36] = torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1)
    picture = (picture + 0.03 * torch.randn(picture.shape, generator=generator)).clamp(0, 1)
    heat = torch.zeros(1, *size)
    heat[:, 14:24, 16:28] = 1
    heat += 0.3 * torch.rand(heat.shape, generator=generator)
    heat[:, :6] = heat[:, 34:] = 0
    return picture, heat


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_the_rectangle_is_cut_out_by_its_colour(iterations: int) -> None:
    picture, heat = planted()
    found = segment(NONE, picture, images=picture, saliency=heat, smoothing=0, iterations=iterations)
    expected = torch.zeros(1, 40, 48, dtype=torch.bool)
    expected[:, 10:30, 12:36] = True
    assert torch.equal(found.mask, expected)
    assert found.boxes.tolist() == [[10, 12, 30, 36]]
    assert found.boxes.dtype == torch.int64
    assert torch.equal(found.attribution, expected.float())
    assert torch.equal(found.saliency, heat)
    assert found.seeds.dtype == torch.uint8


def test_seeds_worked_by_hand() -> None:
    """Of the values 0 to 9 the quantiles 0.3, 0.8 and 0.95 are the nearest that are there: 3, 7 and 9."""
    maps = torch.arange(10.0).view(1, 2, 5)
    assert _seeds(maps, 0.3, 0.8, 0.95).tolist() == [[[0, 0, 0, 0, 2], [2, 2, 3, 3, 1]]]
    # so many zeros that all quantiles are zero: what is above is the object
    sparse = torch.zeros(1, 5, 5)
    sparse[0, 2, 3] = 1
    assert (_seeds(sparse, 0.3, 0.8, 0.9) == 1).nonzero().tolist() == [[0, 2, 3]]
    assert not _seeds(torch.full((1, 4, 4), 7.0), 0.3, 0.8, 0.95).any()


def test_only_the_largest_part_is_kept() -> None:
    picture, heat = planted()
    picture[:, :, 2:6, 2:6] = torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1)
    heat[:, 2:6, 2:6] = 1.2
    both = segment(NONE, picture, images=picture, saliency=heat, smoothing=0, largest=False)
    one = segment(NONE, picture, images=picture, saliency=heat, smoothing=0)
    assert both.boxes.tolist() == [[2, 2, 30, 36]]
    assert one.boxes.tolist() == [[10, 12, 30, 36]]
    assert both.mask[0, 2:6, 2:6].all()


def test_smoothing_is_a_gaussian_with_repeated_borders() -> None:
    maps = torch.rand(2, 20, 30, generator=torch.Generator().manual_seed(1))
    expected = [cv2.GaussianBlur(each.numpy(), (13, 13), 2.0, borderType=cv2.BORDER_REPLICATE) for each in maps]
    torch.testing.assert_close(_smoothed(maps, 0.1), torch.from_numpy(np.stack(expected)), rtol=1e-4, atol=1e-5)
    assert _smoothed(maps, 0) is maps


def test_boxes_hold_their_masks() -> None:
    masks = torch.zeros(2, 2, 6, 7, dtype=torch.bool)
    masks[0, 0, 2:4, 1:6] = True
    masks[0, 1, 5, 6] = True
    masks[1, 0] = True
    assert _boxes(masks).tolist() == [[[2, 1, 4, 6], [5, 6, 6, 7]], [[0, 0, 6, 7], [0, 0, 0, 0]]]


# ---------------------------------------------------------------------------------------------------- from a network


class Net(nn.Module):
    """The score is the redness in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:, 0, 1, 1] = torch.tensor([1.0, -1.0])
            self.conv.weight[:, 2, 1, 1] = torch.tensor([-1.0, 1.0])
            self.conv.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().square().sum((2, 3))


@pytest.mark.parametrize(("kind", "method"), [("guided_backprop", guided_backprop), ("saliency", saliency)])
def test_saliency_is_that_of_the_method(kind: str, method: Any) -> None:
    picture, _ = planted()
    found = segment(Net(), picture, 0, images=picture, saliency=kind, smoothing=0)
    expected = method(Net(), picture, 0)
    assert torch.equal(found.saliency, expected.abs().amax(1) if expected.dim() == 4 else expected)
    assert found.boxes.tolist() == [[10, 12, 30, 36]]


def test_several_targets_batches_and_larger_images() -> None:
    picture, _ = planted()
    x = torch.cat([picture, picture.flip(3)])
    large = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    found = segment(Net(), x, [0, 1], images=large, batch_size=1, smoothing=0.02)
    assert found.mask.shape == (2, 2, 80, 96)
    assert found.boxes.shape == (2, 2, 4)
    top, left, bottom, right = found.boxes[0, 0].tolist()
    assert abs(top - 20) + abs(left - 24) + abs(bottom - 60) + abs(right - 72) <= 4
    single = segment(Net(), x[1:], 0, images=large[1:], smoothing=0.02)
    assert torch.equal(single.mask, found.mask[1:, 0])


def test_images_come_from_the_input() -> None:
    """A model that is not registered has ImageNet's mean and deviation."""
    picture, heat = planted()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    found = segment(NONE, (picture - mean) / std, saliency=heat, smoothing=0)
    assert torch.equal(found.mask, segment(NONE, picture, images=picture, saliency=heat, smoothing=0).mask)


def test_the_model_and_the_random_numbers_of_opencv_are_left_alone() -> None:
    picture, _ = planted()
    model = Net().train()
    cv2.setRNGSeed(5)
    before = cv2.randu(np.zeros((1, 8)), 0, 1)
    cv2.setRNGSeed(5)
    first = segment(model, picture, 0, images=picture)
    assert np.array_equal(cv2.randu(np.zeros((1, 8)), 0, 1), before)
    assert model.training
    assert torch.equal(segment(model, picture, 0, images=picture).mask, first.mask)


def test_the_warning_about_rectifiers_points_here() -> None:
    picture, _ = planted()
    with pytest.warns(RectifierWarning, match="the model has no rectifier") as caught:
        segment(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), picture, 0, images=picture)
    assert [warning.filename for warning in caught] == [__file__]


# ------------------------------------------------------------------------------------------------ nothing, bad input


def test_where_saliency_is_constant_nothing_is_found() -> None:
    picture, _ = planted()
    found = segment(NONE, picture, images=picture, saliency=torch.full((1, 40, 48), 2.0))
    assert not found.mask.any()
    assert found.boxes.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("iterations", [0, 5])
def test_in_a_picture_of_one_colour_the_seeds_decide(iterations: int) -> None:
    _, heat = planted()
    grey = torch.full((1, 3, 40, 48), 0.5)
    found = segment(NONE, grey, images=grey, saliency=heat, smoothing=0, iterations=iterations)
    assert found.mask[found.seeds == 1].all()
    assert not found.mask[found.seeds == 0].any()


def test_every_pixel_may_be_a_seed() -> None:
    picture, heat = planted()
    found = segment(NONE, picture, images=picture, saliency=(heat > 0.9).float(), smoothing=0)
    assert torch.equal(found.mask, heat > 0.9)


def test_no_images() -> None:
    found = segment(Net(), torch.zeros(0, 3, 8, 9), [0, 1])
    assert found.mask.shape == (0, 2, 8, 9)
    assert found.boxes.shape == (0, 2, 4)
    assert segment(Net(), torch.zeros(0, 3, 8, 9), images=torch.zeros(0, 3, 16, 18)).mask.shape == (0, 16, 18)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"foreground": 1.2}, ValueError, r"should be quantiles from 0 to 1 in this order, got \(0.3, 0.8, 1.2\)"),
        ({"background": 0.9}, ValueError, r"should be quantiles from 0 to 1 in this order, got \(0.9, 0.8, 0.95\)"),
        ({"probable": "half"}, TypeError, "background, probable and foreground should be numbers"),
        ({"iterations": -1}, ValueError, "iterations should be at least 0, got -1"),
        ({"smoothing": -0.5}, ValueError, "smoothing should be finite and above 0, got -0.5"),
        ({"saliency": "gradcam"}, ValueError, "saliency should be one of 'guided_backprop', 'saliency', got 'gradcam'"),
        ({"saliency": torch.zeros(2, 40, 48)}, ValueError, "saliency should have 1 maps, one per image, got 2"),
        ({"saliency": torch.full((1, 4, 4), torch.nan)}, ValueError, "saliency should be finite, got NaN or infinity"),
        ({"images": torch.zeros(1, 1, 40, 48)}, ValueError, r"images should have shape \[1, 3, h, w\], got \[1, 1, 40"),
        ({"images": torch.full((1, 3, 40, 48), 2.0)}, ValueError, "images should have values 0 to 1, got 2 to 2"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    picture, heat = planted()
    with pytest.raises(error, match=message):
        segment(NONE, picture, **{"images": picture, "saliency": heat, **options})


def test_an_input_that_is_no_picture_needs_images() -> None:
    with pytest.raises(ValueError, match="images should be given for a model whose input has 2 channels, got None"):
        segment(NONE, torch.zeros(1, 2, 8, 8), saliency=torch.rand(1, 8, 8))


def test_without_opencv_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r'segment needs OpenCV: pip install "fastviz\[segment\]"'):
        segment(NONE, torch.zeros(1, 3, 8, 8))
