"""Every method of the registry with a network of 16 bits: the package's trained one, on a photograph.

Style transfer of a bfloat16 network ended in "target should have the dtype of features", codes in an error of a linear
layer, DeepDream refused its own canvas. A new method fails here until it is among the calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz.methods.registry import EXPLAINERS, METHODS

PHOTO = Path(fv.__file__).parent / "models" / "data" / "photos"
DTYPES = [torch.bfloat16, torch.float16]
K = 3
FEW = {"samples": 2, "permutations": 1, "masks": 16, "segments": 6, "steps": 2, "window": 32, "stride": 16}
"""Options that make methods fast."""
OWN_DTYPE = ("activations", "filters", "synthesize_texture", "fill_hole")
"""Methods that give what the network or the picture itself holds, as it is."""
UNSTABLE = ("recipro_cam", "evolve", "neighbours")
"""Methods whose numbers are small differences, or depend on which of nearly equal numbers is the larger."""


@cache
def network(dtype: torch.dtype) -> nn.Module:
    """The first filters of the package's network, as trained, before a mean and a linear layer: 16 bits are slow."""
    torch.manual_seed(0)
    trained = dict(fv.load_model("demo").named_parameters())
    convolutions = nn.Conv2d(3, 8, 7, padding=3), nn.Conv2d(8, 8, 3, padding=1)
    for module, name in zip(convolutions, ("conv1", "conv2_1"), strict=True):
        with torch.no_grad():
            module.weight.copy_(trained[f"{name}.weight"][:8, : module.in_channels])
            module.bias.copy_(trained[f"{name}.bias"][:8])
    first, second = convolutions
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    model = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), *head)
    model = model.eval().to(dtype)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    fv.describe(model, preprocessing=fv.models.Preprocessing((32, 32), 32, mean, std))
    return model


@cache
def photo() -> Tensor:
    """[1, 3, 32, 32], in numbers that bfloat16 and float16 have."""
    x, _ = fv.load_images(PHOTO, model=network(torch.float32))
    return x[:1].bfloat16().float().half().float()


def patch_sheet(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    found = fv.patches(model, x, "3", k=2)
    return found, fv.patch_sheet(fv.patch_pictures(model, found, x, [0, 5]))


def embedded(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    found = fv.embedding(model, torch.cat([x, x.flip(3), x.flip(2), x.roll(9, 2)]))
    return found, fv.image_map(found.pictures, fv.pca(found.vectors).coordinates, tile=16)


def other(model: nn.Module, x: Tensor) -> int:
    """A class that the model does not see in ``x``."""
    return (int(model(x.to(next(model.parameters()))).argmax()) + 1) % 5


def corner(x: Tensor) -> Tensor:
    """A piece of the first picture, 0 to 1."""
    return x[0, :, :24, :24].sigmoid()


CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "filters": lambda model, x: (fv.filters(model), fv.filter_grid(fv.filters(model))),
    "activations": lambda model, x: fv.activations(model, x, "3"),
    "embedding": embedded,
    "neighbours": lambda model, x: fv.neighbours(embedded(model, x)[0], 2),
    "patches": patch_sheet,
    "maximize": lambda model, x: fv.maximize(model, [K, fv.channel("3", 4)], steps=3),
    "maximize_code": lambda model, x: fv.maximize_code(model, K, "4", steps=3, decoding={"steps": 2}),
    "invert": lambda model, x: fv.invert(model, x, "3", steps=3),
    "deep_dream": lambda model, x: fv.deep_dream(model, x, layer="3", octaves=1, steps=3),
    "fool": lambda model, x: fv.fool(model, x, other(model, x), steps=4),
    "synthesize_texture": lambda model, x: fv.synthesize_texture(corner(x), 20, window=5),
    "fool_from_noise": lambda model, x: fv.fool_from_noise(model, K, steps=4),
    "evolve": lambda model, x: fv.evolve(model, K, population=8, generations=3),
    "fill_hole": lambda model, x: fv.fill_hole(corner(x), torch.arange(576).view(24, 24) < 30, window=5),
    "neural_texture": lambda model, x: fv.neural_texture(model, x, layers=["0", "3"], steps=3),
    "style_transfer": lambda model, x: fv.style_transfer(model, x, x[:1].flip(2), steps=3),
}


def test_every_method_is_here() -> None:
    assert {*CALLS, *EXPLAINERS} == set(METHODS)


def call(name: str, model: nn.Module, x: Tensor) -> Any:
    if name in CALLS:
        return CALLS[name](model, x)
    function = EXPLAINERS[name].function
    takes = inspect.signature(function).parameters
    return function(model, x, K, **{key: FEW[key] for key in FEW if key in takes})


def numbers_of(found: Any) -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors in a result, with their names."""
    if isinstance(found, Tensor):
        if found.is_floating_point():
            yield "", found
    elif is_dataclass(found):
        for each in fields(found):
            yield from ((each.name, value) for _, value in numbers_of(getattr(found, each.name)))
    elif isinstance(found, (tuple, list)):
        for each in found:
            yield from numbers_of(each)
    elif isinstance(found, Mapping):
        yield from numbers_of(list(found.values()))


@cache
def told(name: str, model: torch.dtype, images: torch.dtype) -> list[tuple[str, Tensor]]:
    """The numbers that a method gives with a model and images of these dtypes."""
    return list(numbers_of(call(name, network(model), photo().to(images))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_images_of_both_kinds(name: str, dtype: torch.dtype) -> None:
    """What is told of images of 16 bits is float32, and the same as of those images in float32."""
    found, same = (told(name, dtype, images) for images in (dtype, torch.float32))
    assert found
    for (word, each), (_, other) in zip(found, same, strict=True):
        wide = torch.float64 if name == "neighbours" else torch.float32
        assert each.dtype == wide or (name in OWN_DTYPE and each.dtype == dtype), word
        if name not in ("synthesize_texture", "fill_hole"):  # which have no network, and compute as the picture is
            assert torch.equal(each.nan_to_num(7.0), other.nan_to_num(7.0)), word


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_numbers_are_nearly_those_of_the_wide_network(name: str, dtype: torch.dtype) -> None:
    wide = told(name, torch.float32, torch.float32)
    for (word, each), (_, exact) in zip(told(name, dtype, torch.float32), wide, strict=True):
        assert torch.equal(each.isfinite(), exact.isfinite()), word
        known = exact.isfinite()
        error = float((each[known].double() - exact[known].double()).norm())
        if name not in UNSTABLE and word not in ("images", "delta"):
            assert error <= 0.15 * float(exact[known].double().norm()), word


@pytest.mark.parametrize("dtype", DTYPES)
def test_recipro_cam_is_rounded_only_by_the_scores(dtype: torch.dtype) -> None:
    """Its bfloat16 map was 37 % off the wide one: the model rounds scores that differ little from place to place.

    The map is exactly what the scores say, and nearly the wide one if what follows the layer is wide.
    """
    low, wide = network(dtype), network(torch.float32)
    found = fv.recipro_cam(low, photo(), K, layer="4", gaussian=False)
    with torch.no_grad():
        maps = low[:5](photo().to(dtype))  # type: ignore[index]
        places = maps.shape[-2:].numel()
        alone = torch.eye(places, dtype=dtype).view(places, 1, *maps.shape[-2:]) * maps
        scores = low[5:](alone)[:, K].float()  # type: ignore[index]
    assert torch.equal(found, (scores - scores.min()).view(found.shape))

    class WideHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = low[:5]  # type: ignore[index]
            self.head = deepcopy(low[5:]).float()  # type: ignore[index]

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.maps(x).float())
            return scores

    exact = fv.recipro_cam(wide, photo(), K)
    nearly = fv.recipro_cam(WideHead().eval(), photo().to(dtype), K, layer="maps.4")
    assert float((nearly - exact).norm()) <= 0.02 * float(exact.norm())
