"""How images are prepared for a model, its class names, and what is refused."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from fastviz import models
from fastviz.models.demo_network import DemoNetwork
from fastviz.models.descriptions import ModelInfo, Preprocessing


def test_a_users_model_is_described_beside_it() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    before = {key: copy.copy(value) for key, value in vars(model).items()}
    assert models.preprocessing(model) == Preprocessing((224, 224), 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(ValueError, match=r"class names of this Sequential are not known"):
        models.class_names(model)
    settings = Preprocessing((8, 8), 10, (0.5,), (0.25,))
    models.describe(model, preprocessing=settings)
    models.describe(model, class_names=["cat", "dog"])
    assert models.preprocessing(model) == settings
    assert models.class_names(model) == ["cat", "dog"]
    assert models.model_info(model) == ModelInfo("Sequential", None)
    assert vars(model) == before
    assert models.preprocessing(copy.deepcopy(model)).size == (224, 224)


@pytest.mark.parametrize("channels", [1, 5])
def test_the_first_convolution_tells_the_channels_of_a_model_that_nobody_has_described(channels: int) -> None:
    """maximize, invert and others drew three channels for a grey network and ended in torch's words."""
    model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 8, 3, padding=1)), nn.Conv2d(8, 4, 3))
    for module in (model, torch.jit.script(model), torch.compile(model)):
        assert models.guess_channels(module) == channels
        found = models.preprocessing(module)
        assert (found.size, found.mean, found.std) == ((224, 224), (0.449,) * channels, (0.226,) * channels)
    settings = Preprocessing((8, 8), 10, (0.5,), (0.25,))
    models.describe(model, preprocessing=settings)
    assert models.preprocessing(model) == settings


def test_a_batch_is_believed_before_the_first_convolution_but_not_before_a_description() -> None:
    model = nn.Sequential(nn.Conv2d(16, 4, 1), nn.Conv2d(1, 16, 3))  # registered in another order than called
    assert models.preprocessing_of(model, 1).mean == (0.449,)
    assert models.preprocessing_of(model, 3).mean == (0.485, 0.456, 0.406)
    models.describe(model, preprocessing=Preprocessing((8, 8), 10, (0.5,), (0.25,)))
    with pytest.raises(ValueError, match="x should have the 1 channels of the model's preprocessing, got 3"):
        models.preprocessing_of(model, 3)


def test_without_a_convolution_pictures_have_colours() -> None:
    assert models.guess_channels(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))) is None
    assert len(models.preprocessing(nn.LazyConv2d(4, 3)).mean) == 3


def test_a_compiled_model_is_described_as_the_model_inside() -> None:
    model = nn.Linear(3, 2)
    models.describe(model, class_names=["cat", "dog"])
    compiled = torch.compile(model)
    assert models.class_names(compiled) == ["cat", "dog"]


def test_a_description_keeps_no_model_alive() -> None:
    model = nn.Linear(3, 2)
    models.describe(model, class_names=["cat", "dog"])
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_copy_of_the_built_in_network_stays_described() -> None:
    model = copy.deepcopy(DemoNetwork())
    assert models.class_names(model)[-1] == "tabby cat"
    assert models.preprocessing(model).size == (64, 64)


def test_wrong_descriptions() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(TypeError, match=r"model should be a torch.nn.Module, got str"):
        models.describe("demo", class_names=["cat"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="class_names should be a list of strings, got 'cat'"):
        models.describe(model, class_names="cat")
    with pytest.raises(ValueError, match="class_names should have one name per class, got none"):
        models.describe(model, class_names=[])
    with pytest.raises(TypeError, match="preprocessing should be a Preprocessing, got dict"):
        models.describe(model, preprocessing={"size": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": (0, 8)}, "size should be at least 1, got 0"),
        ({"size": 8}, r"size should be \(height, width\) or None, got 8"),
        ({"resize": 7}, "resize should be at least the larger side of size, 8, got 7"),
        ({"mean": (0.5, 0.5)}, "mean and std should each have one number per channel, got 2 and 1"),
        ({"mean": (), "std": ()}, "each have one number per channel, got 0 and 0"),
        ({"mean": (float("nan"),)}, "mean should be finite"),
        ({"std": (0.0,)}, "std should be above 0"),
        ({"interpolation": "nearest"}, "interpolation should be one of 'bilinear', 'bicubic', got 'nearest'"),
    ],
)
def test_wrong_preprocessing(changed: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"size": (8, 6), "resize": 10, "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(ValueError, match=message):
        Preprocessing(**(settings | changed))


def test_preprocessing_takes_lists() -> None:
    settings = Preprocessing([8, 6], 10, [0.5], [1])  # type: ignore[arg-type]
    assert settings == Preprocessing((8, 6), 10, (0.5,), (1.0,))
    assert hash(settings) == hash(Preprocessing((8, 6), 10, (0.5,), (1.0,)))
