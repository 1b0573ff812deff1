"""Pictures prepared for a network as torchvision prepares them, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fastviz import images, models
from fastviz.models.descriptions import Preprocessing
from tests.images.common import as_tensor, photograph


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "resize", "crop"),
    [
        (300, 451, 256, 224),
        (451, 300, 232, 224),
        (100, 131, 256, 227),
        (64, 64, 64, 64),
        (7, 500, 33, 32),
        (65, 64, 64, 63),
    ],
)
def test_preprocessing_is_torchvisions(mode: Any, height: int, width: int, resize: int, crop: int) -> None:
    presets = pytest.importorskip("torchvision.transforms._presets")
    from torchvision.transforms import InterpolationMode

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transform = presets.ImageClassification(
        crop_size=crop, resize_size=resize, mean=mean, std=std, interpolation=InterpolationMode(mode)
    )
    image = photograph(height, width)
    ours = images.preprocess(as_tensor(image), Preprocessing((crop, crop), resize, mean, std, mode))
    assert_close(ours, transform(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_other_values_are_resized_without_rounding(mode: Any) -> None:
    """16-bit values between multiples of 1/255 stay between them, and near what Pillow makes of the rounded ones."""
    x = (as_tensor(photograph()) * 0.9 + 0.05).repeat(2, 1, 1, 1)
    settings = Preprocessing((20, 24), 30, (0.0,) * 3, (1.0,) * 3, mode)
    exact, rounded = images.preprocess(x, settings), images.preprocess((x * 255).round() / 255, settings)
    assert exact.shape == (2, 3, 20, 24)
    assert ((exact * 255).frac() - 0.5).abs().min() < 0.4
    assert_close(exact, rounded, rtol=0, atol=1.6 / 255)
    assert images.preprocess(x.double(), settings).dtype == torch.float64
    assert_close(images.preprocess(x.half(), settings), exact.half(), rtol=0, atol=2e-3)


def test_sharp_edges_stay_in_range() -> None:
    x = torch.zeros(3, 40, 40)
    x[:, :, 20:] = 0.9999
    resized = images.preprocess(x, Preprocessing((90, 90), 90, (0.0,) * 3, (1.0,) * 3, "bicubic"))
    assert 0 <= resized.min() <= resized.max() <= 1


def test_preprocessing_without_crop_or_resizing() -> None:
    x = as_tensor(photograph(40, 60))
    unit = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    assert images.preprocess(x, Preprocessing(None, 20, **unit)).shape == (3, 20, 30)
    assert images.preprocess(x, Preprocessing((30, 70), None, **unit)).shape == (3, 30, 70)
    assert torch.equal(images.preprocess(x, Preprocessing(None, None, **unit)), x)


def test_normalization_by_hand_and_back() -> None:
    settings = Preprocessing(None, None, (0.5, 0.0, 0.25), (0.5, 0.25, 1.0))
    x = images.preprocess(torch.tensor([[[1.0]], [[0.5]], [[0.25]]]), settings)
    assert x.flatten().tolist() == [1.0, 2.0, 0.0]
    assert images.restore(x, settings).flatten().tolist() == [1.0, 0.5, 0.25]
    assert images.restore(x[None] + 10, settings).flatten().tolist() == [1.0, 1.0, 1.0]


def test_a_grey_network_gets_grey_pictures() -> None:
    settings = Preprocessing((1, 1), 1, (0.5,), (0.5,))
    x = images.preprocess(torch.tensor([[[1.0]], [[0.0]], [[1.0]]]), settings)
    assert_close(x, torch.tensor([[[(0.413 - 0.5) / 0.5]]]))
    assert_close(images.restore(x, settings), torch.full((3, 1, 1), 0.413))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.ones(3, 4, 4) * 255, ValueError, r"image should have values 0 to 1, got 255 to 255"),
        (torch.full((3, 4, 4), torch.nan), ValueError, r"image should have values 0 to 1, got nan to nan"),
        (
            torch.ones(3, 4, 4, dtype=torch.uint8),
            TypeError,
            r"image should be a floating-point tensor, got torch.uint8",
        ),
        (torch.ones(4, 4), ValueError, r"image should have shape \[3, H, W\] or \[N, 3, H, W\], got \[4, 4\]"),
        (torch.ones(2, 4, 4), ValueError, r"image should have 3 channels as the model has, got 2"),
        (torch.ones(3, 0, 4), ValueError, r"image should have at least one pixel, got shape \[3, 0, 4\]"),
        (torch.ones(3, 4, 4, requires_grad=True), ValueError, r"image should not require gradients"),
    ],
)
def test_wrong_pictures_for_preprocessing(image: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        images.preprocess(image, models.preprocessing(nn.Identity()))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(1, 300), (300, 1), (2, 301), (3, 400)])
def test_of_a_narrow_picture_only_the_crop_is_computed(
    mode: Any, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of a pixel or a few, whose resized picture would be huge: the numbers of torchvision's way."""
    from torchvision.transforms import InterpolationMode, _presets

    image = photograph(height, width)
    transform = _presets.ImageClassification(crop_size=28, resize_size=32, interpolation=InterpolationMode(mode))
    usual = models.preprocessing(nn.Identity())
    settings = Preprocessing((28, 28), 32, usual.mean, usual.std, mode)
    monkeypatch.setattr(images.preprocessing, "LIMIT_PIXELS", 1000)
    one_level = 1.01 / 255 / min(settings.std)
    assert_close(images.prepare(image, settings), transform(image), rtol=0, atol=one_level)
    assert_close(images.preprocess(as_tensor(image), settings), transform(image), rtol=0, atol=one_level)
    deep = as_tensor(image) * 0.999
    expected = images.tensors.resize(deep[None], *images.preprocessing._resized_size(height, width, settings), mode)
    top, left, bottom, right = images.preprocessing._crop(
        images.preprocessing._resized_size(height, width, settings), settings
    )
    found = images.restore(images.preprocess(deep, settings), settings)
    assert_close(found, expected[0, :, top:bottom, left:right], rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match="pixels is too narrow"):
        images.preprocess(as_tensor(image), Preprocessing(None, 32, usual.mean, usual.std))


def test_wrong_input_for_restoring() -> None:
    settings = Preprocessing(None, None, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="x should have 3 channels as the model has, got 1"):
        images.restore(torch.ones(1, 4, 4), settings)
