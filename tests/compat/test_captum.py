"""The substitutes of captum's classes against captum's own, number for number; and without captum."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastviz
from fastviz.compat import captum as ours
from fastviz.compat.captum import _sweep
from fastviz.engine import incremental

theirs = pytest.importorskip("captum.attr")

pytestmark = pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks", "ignore:Input Tensor 0 did not")

NAMES = ours.__all__
PERTURBATIONS = ["Occlusion", "FeatureAblation"]
NEURONS_AND_CAMS = ["NeuronGuidedBackprop", "NeuronDeconvolution", "LayerGradCam", "GuidedGradCam"]
OF_LAYERS = [
    *("NeuronGuidedBackprop", "NeuronDeconvolution", "LayerGradCam", "GuidedGradCam"),
    *("LayerActivation", "LayerGradientXActivation", "InternalInfluence", "LayerConductance"),
]
ALONE_TOO = [
    *PERTURBATIONS,
    *("NeuronGuidedBackprop", "NeuronDeconvolution", "LayerGradCam", "GuidedGradCam"),
    *("Saliency", "InputXGradient", "GuidedBackprop", "Deconvolution", "IntegratedGradients"),
    *("LayerActivation", "LayerGradientXActivation"),
]
"""Those that work without captum."""
GRADIENTS = ["Saliency", "InputXGradient", "GuidedBackprop", "Deconvolution"]
TEN = [*PERTURBATIONS, *GRADIENTS, *NEURONS_AND_CAMS]
"""Those whose tests stand here; the others have theirs in ``test_captum_sampling``."""


def cnn(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return (
        nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 6)),
        )
        .eval()
        .to(dtype)
    )


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    return cnn()


@pytest.fixture
def x() -> Tensor:
    """A new one for each test: captum leaves ``requires_grad`` on it where a call raises."""
    return torch.randn(2, 3, 12, 14, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """However small a call is, it is not left to captum for that; the list fills with why others are."""
    monkeypatch.setattr(_sweep, "MIN_WORK", 0.0)
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("fastviz.compat.captum")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield messages
    log.removeHandler(handler)
    log.setLevel(level)


def made(name: str, model: Any, layer: Any = None) -> tuple[Any, Any]:
    """captum's instance and ours."""
    if name == "NoiseTunnel":
        return theirs.NoiseTunnel(theirs.Saliency(model)), ours.NoiseTunnel(ours.Saliency(model))
    arguments = (model,) if layer is None else (model, layer)
    return getattr(theirs, name)(*arguments), getattr(ours, name)(*arguments)


def same(found: Any, expected: Any, *, exact: bool = False) -> None:
    if isinstance(expected, tuple):
        assert isinstance(found, tuple)
        assert len(found) == len(expected)
        for each, other in zip(found, expected, strict=True):
            same(each, other, exact=exact)
        return
    expected = expected.detach()
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    assert exact or scale > 0 or not expected.numel()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.0 if exact else 2e-5 * scale)


def raised(call: Callable[[], object]) -> type[BaseException]:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is what is asked
        call()
    return caught.type


# ------------------------------------------------------------------------------------------------------ the classes


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_captums(name: str) -> None:
    for method in ("__init__", "attribute"):
        mine, captums = (inspect.signature(getattr(getattr(each, name), method)).parameters for each in (ours, theirs))
        assert [(each.name, each.kind, each.default) for each in mine.values()] == [
            (each.name, each.kind, each.default) for each in captums.values()
        ]


@pytest.mark.parametrize("name", NAMES)
def test_members_are_captums(name: str, model: nn.Sequential) -> None:
    layer = model[0] if name in OF_LAYERS else None
    captums, mine = made(name, model, layer)
    assert isinstance(mine, theirs.Attribution)
    assert isinstance(mine, type(captums))
    assert mine.get_name() == captums.get_name()
    assert mine.multiplies_by_inputs == captums.multiplies_by_inputs
    assert mine.has_convergence_delta() == captums.has_convergence_delta()
    assert mine.forward_func is model
    assert hasattr(mine.attribute, "__wrapped__")
    futures = ("FeatureAblation", "FeaturePermutation", "ShapleyValueSampling", "ShapleyValues", "Lime", "KernelShap")
    if name not in (*futures, *OF_LAYERS):
        with pytest.raises(NotImplementedError, match="attribute_future"):
            mine.attribute_future()


# -------------------------------------------------------------------------------------------------------- occlusion


@pytest.mark.parametrize(
    ("window", "strides"),
    [
        ((3, 4, 4), (3, 2, 2)),
        ((3, 5, 3), (3, 4, 2)),  # cut off at both ends
        ((3, 4, 4), 3),
        (((3, 4, 6),), ((3, 4, 6),)),
        ((1, 4, 4), (1, 3, 4)),  # each channel by itself
        ((2, 6, 7), (1, 6, 7)),  # channels covered twice
        ((3, 12, 14), None),  # all at once
        ((3, 11, 13), None),
    ],
)
@pytest.mark.parametrize("baseline", ["none", "number", "images", "image", "row"])
def test_occlusion(model: nn.Sequential, x: Tensor, window: Any, strides: Any, baseline: str, swept: list[str]) -> None:
    baselines: dict[str, Any] = {
        "none": None, "number": 0.5, "images": x.flip(0), "image": (x[:1] * 2,), "row": torch.arange(14.0) / 14,
    }  # fmt: skip
    captums, mine = made("Occlusion", model)
    arguments = {"strides": strides, "baselines": baselines[baseline], "target": [1, 4]}
    same(mine.attribute(x, window, **arguments), captums.attribute(x, window, **arguments))
    assert not swept


TARGETS: list[Any] = [
    2, -1, (3,), [1, 4], [5, 5], [(2,), (0,)], torch.tensor(3), torch.tensor([1]), torch.tensor([4, 0]), (slice(1, 3),),
    None,
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_occlusion_and_ablation_of_targets(model: nn.Sequential, x: Tensor, target: Any, swept: list[str]) -> None:
    """Without a target, or with a slice, there is an attribution for each value of the output."""
    captums, mine = made("Occlusion", model)
    windows = ((3, 6, 7), (3, 6, 7))
    same(mine.attribute(x, *windows, target=target), captums.attribute(x, *windows, target=target))
    captums, mine = made("FeatureAblation", model)
    mask = (torch.arange(12)[:, None] // 5 * 3 + torch.arange(14) // 5)[None, None]
    same(mine.attribute(x, 0.1, target, feature_mask=mask), captums.attribute(x, 0.1, target, feature_mask=mask))
    assert not swept


class Places(nn.Module):
    """Scores of places, [N, K, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


@pytest.mark.parametrize("target", [(2, 1, 3), [(2, 1, 3), (0, 0, 0)], 1], ids=str)
def test_occlusion_of_outputs_with_places(x: Tensor, target: Any, swept: list[str]) -> None:
    captums, mine = made("Occlusion", Places().eval())
    same(mine.attribute(x, (3, 6, 7), 3, target=target), captums.attribute(x, (3, 6, 7), 3, target=target))
    assert not swept


@pytest.mark.parametrize("name", ["squeezenet1_0", "resnet18"])
def test_real_networks(name: str, swept: list[str]) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    network, photo = torchvision.models.get_model(name).eval(), torch.randn(1, 3, 64, 64)
    captums, mine = made("Occlusion", network)
    windows: dict[str, Any] = {"sliding_window_shapes": (3, 24, 24), "strides": (3, 20, 20)}
    same(mine.attribute(photo, **windows, target=7), captums.attribute(photo, **windows, target=7))
    assert not swept
    for kind in GRADIENTS:
        captums, mine = made(kind, network)
        same(mine.attribute(photo, target=7), captums.attribute(photo, target=7))
    layer = network.features[9] if name == "squeezenet1_0" else network.layer3
    captums, mine = made("GuidedGradCam", network, layer)
    options = {"interpolate_mode": "bilinear"}
    same(mine.attribute(photo, 7, **options), captums.attribute(photo, 7, **options))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(x: Tensor, dtype: torch.dtype, swept: list[str]) -> None:
    """captum's Occlusion gives float32 whatever the model computes in, FeatureAblation the model's own."""
    model, images = cnn(dtype), x.to(dtype)
    mask = torch.arange(14)[None, None, None] // 7
    for name, arguments in (("Occlusion", ((3, 6, 7), 3)), ("FeatureAblation", (None, 1, None, mask))):
        captums, mine = made(name, model)
        found, expected = (each.attribute(images, *arguments, **({"target": 1} if name == "Occlusion" else {}))
                           for each in (mine, captums))  # fmt: skip
        assert found.dtype == expected.dtype
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=(2e-6 if dtype == torch.float64 else 0.2) * scale)
    assert not swept


def test_perturbations_per_eval_does_not_change_the_result(model: nn.Sequential, x: Tensor, swept: list[str]) -> None:
    attribution = ours.Occlusion(model)
    one, many = (attribution.attribute(x, (3, 4, 4), 2, target=1, perturbations_per_eval=each) for each in (1, 7))
    assert torch.equal(one, many)
    assert not swept


def test_a_tuple_of_one_input_gives_a_tuple(model: nn.Sequential, x: Tensor, swept: list[str]) -> None:
    captums, mine = made("Occlusion", model)
    arguments: tuple[Any, ...] = ((x,), ((3, 6, 7),), ((3, 6, 7),), (0.5,), 1)
    same(mine.attribute(*arguments), captums.attribute(*arguments))
    assert not swept


def test_inference_mode(model: nn.Sequential, x: Tensor, swept: list[str]) -> None:
    with torch.inference_mode():
        images = x.clone()
        for name in PERTURBATIONS:
            captums, mine = made(name, model)
            arguments = ((3, 6, 7), 3) if name == "Occlusion" else ()
            if name == "FeatureAblation":
                options: dict[str, Any] = {"target": 1, "feature_mask": torch.arange(14) // 7}
            else:
                options = {"target": 1}
            same(mine.attribute(images, *arguments, **options), captums.attribute(images, *arguments, **options))
    assert not swept


# --------------------------------------------------------------------------------------------------------- ablation


def masks() -> dict[str, Tensor | None]:
    rows, columns = torch.arange(12)[:, None], torch.arange(14)
    generator = torch.Generator().manual_seed(0)
    slanted = (rows * 2 + columns) // 9  # segments whose boxes overlap
    return {
        "rectangles": (rows // 5 * 3 + columns // 5)[None, None],
        "segments": slanted[None, None],
        "channels": torch.arange(3).view(1, 3, 1, 1),
        "each image": torch.stack([rows // 4 + 0 * columns, columns // 4 + 0 * rows])[:, None],
        "each value": torch.stack([slanted, slanted.flip(0) + 3, slanted // 2]).expand(2, 3, 12, 14),
        "scattered": torch.randint(0, 3, (1, 1, 12, 14), generator=generator),
        "three dimensions": slanted[None],
        "row": columns // 3,
        "one": torch.tensor(0),
        "fractions": (columns // 7 * 0.5)[None, None, None],
        "none": None,
    }


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("baselines", [None, 0.3, "images"], ids=str)
def test_feature_ablation(model: nn.Sequential, x: Tensor, mask: str, baselines: Any, swept: list[str]) -> None:
    small = x[:, :, :4, :5] if mask == "none" else x
    network = nn.Sequential(nn.AdaptiveAvgPool2d((12, 14)), *model).eval() if mask == "none" else model
    captums, mine = made("FeatureAblation", network)
    options: dict[str, Any] = {
        "feature_mask": masks()[mask],
        "baselines": small.flip(0) if baselines == "images" else baselines,
        "target": torch.tensor([1, 4]),
    }
    same(mine.attribute(small, **options), captums.attribute(small, **options))
    assert not swept


def test_masks_of_fewer_dimensions(model: nn.Sequential, x: Tensor, swept: list[str]) -> None:
    """captum spreads them over the wrong dimension where it computes several perturbations at once."""
    captums, mine = made("FeatureAblation", model)
    options: dict[str, Any] = {"target": 1, "feature_mask": masks()["three dimensions"]}
    expected = captums.attribute(x, **options)
    assert not torch.allclose(captums.attribute(x, **options, perturbations_per_eval=2), expected)
    same(mine.attribute(x, **options, perturbations_per_eval=2), expected)
    assert not swept


def test_too_many_overlapping_features_are_captums(model: nn.Sequential, x: Tensor, swept: list[str]) -> None:
    mask = torch.randint(0, 40, (1, 1, 12, 14), generator=torch.Generator().manual_seed(0))
    captums, mine = made("FeatureAblation", model)
    same(mine.attribute(x, target=1, feature_mask=mask), captums.attribute(x, target=1, feature_mask=mask), exact=True)
    assert swept == ["FeatureAblation takes captum's own path: too many features overlap"]


# ------------------------------------------------------------------------------------------------ captum's own path


class Mixes(nn.Module):
    """An image's scores depend on its batch."""

    def forward(self, x: Tensor) -> Tensor:
        values = x.flatten(1)[:, :6]
        return values - 0.5 * values.mean(0)


class OneAtATime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1)[:, :504][:, :6] ** 2


def hooked() -> nn.Module:
    model = cnn()
    model[1].register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def with_dropout() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.0), nn.Flatten(), nn.Linear(480, 6))


def scripted() -> nn.Module:
    traced: nn.Module = torch.jit.trace(cnn(), torch.zeros(2, 3, 12, 14))
    return traced


@pytest.mark.parametrize(
    ("made_model", "shape", "reason"),
    [
        (Mixes, (2, 3, 12, 14), "the output for an image may depend on the others of its batch"),
        (OneAtATime, (1, 3, 12, 14), "the output for an image may depend on the others of its batch: "),
        (hooked, (2, 3, 12, 14), "1 has forward hooks"),
        (with_dropout, (2, 3, 12, 14), "the model is in training mode"),
        (scripted, (2, 3, 12, 14), "forward_func is a TopLevelTracedModule"),
        (lambda: cnn().forward, (2, 3, 12, 14), "forward_func is not a module"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_models_that_are_left_to_captum(
    made_model: Callable[[], Any], shape: tuple[int, ...], reason: str, swept: list[str]
) -> None:
    model, images = made_model(), torch.randn(*shape)
    captums, mine = made("Occlusion", model)
    same(mine.attribute(images, (3, 6, 7), 3, target=1), captums.attribute(images, (3, 6, 7), 3, target=1), exact=True)
    assert len(swept) == 1
    assert swept[0].startswith(f"Occlusion takes captum's own path: {reason}")


@pytest.mark.parametrize(
    ("inputs", "window"),
    [
        (torch.arange(12.0).view(2, 6), (2,)),
        (torch.arange(12).view(2, 6), (2,)),
        (torch.arange(12).view(2, 6) % 2 == 0, (2,)),
        (torch.ones(2, 3, 1, 1, 1, 4), (1, 1, 1, 1, 2)),
        ((torch.arange(12.0).view(2, 6), torch.ones(2, 3)), ((2,), (1,))),
        (torch.tensor([1.0, 2.0]), ()),
        (torch.full((2, 3, 4, 5), torch.inf), (3, 2, 2)),
    ],
    ids=["1-D", "whole", "bool", "5-D", "tuple", "0-D", "inf"],
)
def test_inputs_that_are_left_to_captum(inputs: Any, window: Any, swept: list[str]) -> None:
    class Sums(nn.Module):
        def forward(self, *each: Tensor) -> Tensor:
            return torch.stack([x.reshape(len(x), -1).sum(1).float() for x in each]).sum(0)

    captums, mine = made("Occlusion", Sums())
    if window == ():
        inputs, window = (inputs, inputs), ((), ())
    torch.testing.assert_close(
        mine.attribute(inputs, window), captums.attribute(inputs, window), rtol=0, atol=0, equal_nan=True
    )
    assert len(swept) == 1


@pytest.mark.parametrize(
    ("inputs", "mask"),
    [
        (torch.arange(12.0).view(2, 6), torch.arange(6) // 2),
        (torch.arange(12).view(2, 6), torch.tensor([[0, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1]])),
        (torch.arange(12).view(2, 6) % 2 == 0, None),
        ((torch.arange(12.0).view(2, 6), torch.ones(2, 3)), (torch.arange(6)[None], torch.arange(6, 9)[None])),
        ((torch.ones(2, 3, 4, 4), torch.ones(2, 3)), None),
    ],
    ids=["1-D", "whole", "bool", "tuple", "image and vector"],
)
def test_ablations_that_are_left_to_captum(inputs: Any, mask: Any, swept: list[str]) -> None:
    class Sums(nn.Module):
        def forward(self, *each: Tensor) -> Tensor:
            return torch.stack([(x.reshape(len(x), -1).float() ** 2).sum(1) for x in each]).sum(0)

    captums, mine = made("FeatureAblation", Sums())
    for number in (1, 2):
        options: dict[str, Any] = {"feature_mask": mask, "perturbations_per_eval": number}
        same(mine.attribute(inputs, **options), captums.attribute(inputs, **options), exact=True)
    assert len(swept) == 2


def test_models_that_give_futures(x: Tensor) -> None:
    """attribute_future, where captum has it, is captum's own."""
    model = cnn()

    def later(images: Tensor) -> torch.futures.Future[Tensor]:
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(model(images))
        return future

    if not hasattr(theirs.FeatureAblation, "attribute_future"):
        pytest.skip("this captum has no attribute_future")
    captums, mine = made("FeatureAblation", later)
    arguments: dict[str, Any] = {"target": 1, "feature_mask": masks()["rectangles"]}
    found, expected = (each.attribute_future(x, **arguments).wait() for each in (mine, captums))
    same(found, expected, exact=True)
    same(found, ours.FeatureAblation(model).attribute(x, **arguments))


def test_calls_that_are_left_to_captum(model: nn.Sequential, x: Tensor, swept: list[str]) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
            out: Tensor = model(x) * factor
            return out

    captums, mine = made("Occlusion", Scaled())
    arguments: tuple[Any, ...] = (x, (3, 6, 7), 3, None, 1, 2.5)
    same(mine.attribute(*arguments), captums.attribute(*arguments), exact=True)
    with torch.autocast("cpu"):
        same(mine.attribute(*arguments[:5]), captums.attribute(*arguments[:5]), exact=True)

    class Own(ours.Occlusion):
        pass

    same(Own(model).attribute(*arguments[:5]), theirs.Occlusion(model).attribute(*arguments[:5]), exact=True)
    assert swept == [
        "Occlusion takes captum's own path: the model takes further arguments",
        "Occlusion takes captum's own path: autocast is on",
        "Occlusion takes captum's own path: Own may override methods",
    ]


def test_little_work_is_left_to_captum(model: nn.Sequential, x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="fastviz.compat.captum")
    captums, mine = made("Occlusion", model)
    same(mine.attribute(x, (3, 6, 7), 3, target=1), captums.attribute(x, (3, 6, 7), 3, target=1), exact=True)
    assert caplog.messages == ["Occlusion takes captum's own path: the call is less work than preparing the model"]


def test_training_mode_without_dropout_or_batch_norm(x: Tensor, swept: list[str]) -> None:
    model = cnn().train()
    captums, mine = made("Occlusion", model)
    same(mine.attribute(x, (3, 6, 7), 3, target=1), captums.attribute(x, (3, 6, 7), 3, target=1))
    assert not swept
    assert all(module.training for module in model.modules())


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.first(x).relu(), training=self.training)
        out: Tensor = self.last(hidden.mean((2, 3)))
        return out


def with_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(480, 6))


@pytest.mark.parametrize("made_model", [Noisy, with_batch_norm])
def test_looking_at_a_call_leaves_no_trace(made_model: Callable[[], nn.Module], x: Tensor, swept: list[str]) -> None:
    """What is run to find out whether a call is captum's draws no random number, and updates no batch norm."""
    found = []
    for package in (theirs, ours):
        model = made_model().train()
        torch.manual_seed(1)
        found.append((package.Occlusion(model).attribute(x, (3, 6, 7), 3, target=1), torch.rand(1), model.state_dict()))
    same(found[1][0], found[0][0], exact=True)
    assert torch.equal(found[1][1], found[0][1])
    for key, value in found[0][2].items():
        assert torch.equal(found[1][2][key], value)
    reason = "draws random numbers" if made_model is Noisy else "the model is in training mode"
    assert len(swept) == 1
    assert swept[0].endswith(reason)


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(
    ("head", "target"),
    [
        (lambda maps: maps.mean((1, 2, 3)), None),
        (lambda maps: maps.mean((2, 3))[:, :1], None),
        (lambda maps: maps.mean((2, 3))[:, :1], 0),
        (lambda maps: maps, (1, 3, 4)),
        (lambda maps: maps[:, :2, :2, :2], None),
        (lambda maps: maps.mean((2, 3))[:, :, None], None),
        (lambda maps: maps.sum(), None),
        (lambda maps: maps.mean().view(1), None),
        (lambda maps: (maps.mean((2, 3)), maps), None),
    ],
)
def test_outputs_of_every_shape(
    name: str, images: int, head: Callable[[Tensor], Any], target: Any, swept: list[str], traced: None
) -> None:
    """A model that gives [N] ended in an IndexError."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Any:
            return head(self.conv(x).relu())

    torch.manual_seed(0)
    model, x = Net().eval(), torch.rand(images, 3, 16, 16)
    mask = torch.arange(256).view(1, 1, 16, 16) // 32
    arguments: dict[str, Any] = (
        {"feature_mask": mask}
        if name == "FeatureAblation"
        else {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4)}
    )
    found: list[Any] = []
    for attribution in made(name, model):
        try:
            found.append(attribution.attribute(x, target=target, **arguments))
        except Exception as error:
            found.append(type(error))
    if isinstance(found[0], Tensor):
        same(found[1], found[0])
    else:
        assert found[0] is found[1]


@pytest.mark.parametrize("images", [1, 2])
def test_windows_of_a_model_that_mixes_are_captums(images: int, swept: list[str], traced: None) -> None:
    class Normalizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cnn()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net((x - x.min()) / (x.max() - x.min()))
            return out

    model, x = Normalizes().eval(), torch.rand(images, 3, 12, 14)
    x[0, :, 8, 9] = 3.0  # the brightest place, which one of the windows covers
    expected, found = (each.attribute(x, (3, 6, 7), (3, 3, 3), target=1) for each in made("Occlusion", model))
    same(found, expected)
    assert "may mix the images of a batch" in swept[0]


def test_operations_are_counted() -> None:
    """A linear layer of 12 to 5: 2 · 12 · 5 operations per image."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    call = _sweep.Call(model, torch.ones(3, 3, 2, 2), 0.0)
    with pytest.raises(_sweep.LeftToCaptum, match="less work"):
        call.job(1, torch.tensor([[0, 0, 1, 1]]), 4)
    work = incremental.known(model, torch.ones(3, 3, 2, 2))
    assert work is not None
    assert work.operations == 120


# --------------------------------------------------------------------------------------------- signals and volumes


def of_axes(axes: int) -> nn.Module:
    """A small network of signals (1) or volumes (3)."""
    torch.manual_seed(0)
    conv, norm, pool, mean = (
        getattr(nn, f"{kind}{axes}d") for kind in ("Conv", "BatchNorm", "MaxPool", "AdaptiveAvgPool")
    )
    return nn.Sequential(
        *(conv(2, 4, 3, padding=1), norm(4), nn.ReLU(), pool(2), conv(4, 5, 3), nn.ReLU()),
        *(mean(1), nn.Flatten(), nn.Linear(5, 3)),
    ).eval()


@pytest.mark.parametrize(
    ("size", "window", "strides"),
    [
        ((40,), (2, 7), 3),
        ((40,), (1, 10), (1, 10)),
        ((40,), (2, 40), None),
        ((8, 9, 10), (2, 3, 4, 2), (2, 3, 2, 2)),
        ((8, 9, 10), (1, 8, 3, 3), 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("baseline", ["none", "number", "one", "each"])
def test_occlusion_of_signals_and_volumes(
    size: tuple[int, ...], window: Any, strides: Any, baseline: str, swept: list[str], traced: None
) -> None:
    model = of_axes(len(size))
    x = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(1))
    baselines = {"none": None, "number": 0.3, "one": torch.randn(1, 2, *size), "each": torch.randn(2, 2, *size)}[
        baseline
    ]
    if strides == 3 and window[0] < 3:
        strides = (window[0], *(3,) * len(size))
    captums, mine = made("Occlusion", model)
    options = {"strides": strides, "baselines": baselines, "target": torch.tensor([2, 0])}
    found = mine.attribute(x, window, **options)
    assert not swept
    same(found, captums.attribute(x, window, **options))


@pytest.mark.parametrize("size", [(40,), (8, 9, 10)], ids=str)
def test_ablation_of_signals_and_volumes_is_captums(size: tuple[int, ...], swept: list[str]) -> None:
    captums, mine = made("FeatureAblation", of_axes(len(size)))
    x = torch.randn(2, 2, *size)
    mask = (torch.arange(size[-1]) // 4).expand(1, 1, *size)
    same(mine.attribute(x, target=1, feature_mask=mask), captums.attribute(x, target=1, feature_mask=mask), exact=True)
    assert "the inputs are not images" in swept[0]


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "window", "strides"),
    [
        ({}, (3, 4), None),
        ({}, ((3, 4, 4), (3, 4, 4)), None),
        ({}, (3, 13, 4), None),
        ({}, (3, 4, 4), (3, 5, 2)),
        ({}, (3, 4, 4), (3, 2)),
        ({}, (3, 4, 4), 2.0),
        ({"target": 6}, (3, 4, 4), 2),
        ({"target": (1, 2)}, (3, 4, 4), 2),
        ({"target": [1]}, (3, 4, 4), 2),
        ({"target": [1, 9]}, (3, 4, 4), 2),
        ({"target": [1.5, 2.5]}, (3, 4, 4), 2),
        ({"target": torch.tensor([1, 2, 3])}, (3, 4, 4), 2),
        ({"target": "tabby"}, (3, 4, 4), 2),
        ({"perturbations_per_eval": 0}, (3, 4, 4), 2),
        ({"perturbations_per_eval": 1.5}, (3, 4, 4), 2),
        ({"baselines": "grey"}, (3, 4, 4), 2),
        ({"baselines": torch.ones(4)}, (3, 4, 4), 2),
        ({"inputs": [1, 2]}, (3, 4, 4), 2),
        ({"inputs": torch.ones(1, 2, 12, 14)}, (2, 4, 4), 2),
    ],
    ids=str,
)
def test_errors_of_occlusion_are_captums(
    model: nn.Sequential, x: Tensor, change: dict[str, Any], window: Any, strides: Any, swept: list[str]
) -> None:
    captums, mine = made("Occlusion", model)
    arguments = {"inputs": x, "sliding_window_shapes": window, "strides": strides, "target": 1, **change}
    assert raised(lambda: mine.attribute(**arguments)) is raised(lambda: captums.attribute(**arguments))


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize(
    "change",
    [
        {"target": 6}, {"target": (1, 2)}, {"target": [1]}, {"target": None}, {"target": "tabby"},
        {"target": torch.tensor([1, 2, 3])}, {"inputs": torch.ones(2, 3, 12, 14).int()}, {"inputs": 3},
        {"inputs": torch.ones(1, 2, 12, 14)},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Input Tensor 0 has a dtype")
def test_errors_of_gradients_are_captums(model: nn.Sequential, x: Tensor, name: str, change: dict[str, Any]) -> None:
    captums, mine = made(name, model)
    arguments = {"inputs": x.clone(), "target": 1, **change}
    assert raised(lambda: mine.attribute(**arguments)) is raised(lambda: captums.attribute(**arguments))


@pytest.mark.parametrize("selector", [9, (9, 0, 0), (1, 2, 3, 4), (9999,) * 20, (1,)], ids=str)
def test_errors_of_neurons_are_captums(model: nn.Sequential, x: Tensor, selector: Any) -> None:
    captums, mine = made("NeuronGuidedBackprop", model, model[0])
    assert raised(lambda: mine.attribute(x, selector)) is raised(lambda: captums.attribute(x, selector))


def test_a_layer_that_is_not_called(model: nn.Sequential, x: Tensor) -> None:
    for name, arguments in (("LayerGradCam", (1,)), ("NeuronGuidedBackprop", (0,))):
        captums, mine = made(name, model, nn.ReLU())
        assert raised(lambda c=captums, a=arguments: c.attribute(x, *a)) is AssertionError
        with pytest.raises(AssertionError, match="layer should be called"):
            mine.attribute(x, *arguments)


# -------------------------------------------------------------------------------------------------------- gradients


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(3, 8), nn.Linear(8, 4)
        self.relu = nn.ReLU()

    def forward(self, a: Tensor, b: Tensor, factor: float = 1.0, more: Tensor | None = None) -> Tensor:
        hidden = self.relu(self.first(a) + self.second(b)) * factor
        out: Tensor = self.last(hidden if more is None else hidden + more)
        return out


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("target", [each for each in TARGETS if each is not None and each != (slice(1, 3),)], ids=str)
def test_gradients(model: nn.Sequential, x: Tensor, name: str, target: Any) -> None:
    captums, mine = made(name, model)
    same(mine.attribute(x, target), captums.attribute(x.clone(), target), exact=True)


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("extra", [None, 2.0, (2.0, torch.ones(5, 8))], ids=["none", "number", "several"])
def test_gradients_for_several_inputs(name: str, extra: Any) -> None:
    captums, mine = made(name, TwoInputs())
    inputs = (torch.randn(5, 6, requires_grad=True), torch.randn(5, 3))
    expected = captums.attribute((inputs[0], inputs[1].clone()), 2, additional_forward_args=extra)
    same(mine.attribute(inputs, 2, additional_forward_args=extra), expected, exact=True)


@pytest.mark.parametrize("name", [*PERTURBATIONS, "Saliency", "InputXGradient", "IntegratedGradients"])
def test_functions_around_a_model_with_several_outputs(name: str, model: nn.Sequential, x: Tensor) -> None:
    """captum #444: the function that picks one of them is run as captum runs it."""

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            scores = self.inner(x)
            return scores, {"probabilities": scores.softmax(1)}

    several = Several().eval()
    arguments: dict[str, Any] = {"Occlusion": {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4)}}.get(name, {})
    if name == "FeatureAblation":
        arguments = {"feature_mask": torch.arange(14).expand(1, 1, 12, 14) // 7}
    for picks in (lambda images: several(images)[0], lambda images: several(images)[1]["probabilities"]):
        captums, mine = made(name, picks)
        same(mine.attribute(x, target=2, **arguments), captums.attribute(x.clone(), target=2, **arguments))


WITH_MASKS = ["FeatureAblation", "FeaturePermutation", "ShapleyValueSampling", "ShapleyValues", "KernelShap", "Lime"]


@pytest.mark.parametrize("name", WITH_MASKS)
def test_a_mask_for_each_input(name: str) -> None:
    """captum PR #1922: two inputs and one mask gave zeros for the second, without a word."""
    inputs = (torch.randn(1, 6), torch.randn(1, 3))
    masks = (torch.tensor([[0, 0, 0, 1, 1, 1]]), torch.tensor([[2, 2, 3]]))
    attribution = getattr(ours, name)(TwoInputs())
    for wrong in (masks[0], masks[:1], (*masks, masks[0])):
        count = len(wrong) if isinstance(wrong, tuple) else 1
        with pytest.raises(
            AssertionError, match=f"feature_mask should have one tensor for each of 2 inputs, got {count}"
        ):
            attribution.attribute(inputs, target=1, feature_mask=wrong)
    with pytest.raises(AssertionError, match="feature_mask should have one tensor for each of 1 inputs, got 2"):
        attribution.attribute(inputs[0], target=1, feature_mask=masks)
    if name != "FeaturePermutation":  # which changes nothing in a batch of one
        found = attribution.attribute(inputs, target=1, feature_mask=masks)
        assert all(each.any() for each in found)


def test_signed_saliency_and_functions(model: nn.Sequential, x: Tensor) -> None:
    captums, mine = made("Saliency", lambda images: model(images).softmax(1)[:, 2])
    same(mine.attribute(x, abs=False), captums.attribute(x.clone(), abs=False), exact=True)


@pytest.mark.parametrize("name", ["NeuronGuidedBackprop", "NeuronDeconvolution"])
@pytest.mark.parametrize("layer", [0, 1, 3, 7])
@pytest.mark.parametrize("at_input", [False, True])
def test_neurons(model: nn.Sequential, x: Tensor, name: str, layer: int, at_input: bool) -> None:
    captums, mine = made(name, model, model[layer])
    selectors: list[Any] = [lambda values: values.flatten(1)[:, 1::3].sum(1)]
    selectors += [1, (2,), (slice(1, 3),)] if layer == 7 else [(1, 2, 2), (1, slice(0, 2), 3)]
    for selector in selectors:
        arguments: dict[str, Any] = {"neuron_selector": selector, "attribute_to_neuron_input": at_input}
        same(mine.attribute(x, **arguments), captums.attribute(x.clone(), **arguments), exact=True)


@pytest.mark.parametrize("layer", [0, 1, 3, 6, 7])
@pytest.mark.parametrize("at_input", [False, True])
def test_grad_cam(model: nn.Sequential, x: Tensor, layer: int, at_input: bool) -> None:
    captums, mine = made("LayerGradCam", model, model[layer])
    for options in (
        {},
        {"relu_attributions": True},
        {"attr_dim_summation": False},
        {"grad_kwargs": {"retain_graph": True}},
    ):
        arguments: dict[str, Any] = {"target": [1, 4], "attribute_to_layer_input": at_input, **options}
        found = mine.attribute(x, **arguments)
        same(found, captums.attribute(x.clone(), **arguments), exact=True)
        assert not found.requires_grad  # captum's holds the graph of the whole forward pass
    if layer < 4:
        captums, mine = made("GuidedGradCam", model, model[layer])
        for mode in ("nearest", "bilinear"):
            arguments = {"target": 2, "interpolate_mode": mode, "attribute_to_layer_input": at_input}
            same(mine.attribute(x, **arguments), captums.attribute(x.clone(), **arguments), exact=True)


class Views(nn.Module):
    """Works in contiguous memory only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = cnn()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.view(len(x), -1).view(x.shape))
        return out


@pytest.mark.parametrize("name", [*GRADIENTS, *NEURONS_AND_CAMS])
@pytest.mark.parametrize("made_model", [cnn, Views])
def test_batches_in_another_memory_order(name: str, made_model: Callable[[], nn.Module]) -> None:
    """From four images on the model gets them in channels_last memory; what it gives is contiguous all the same."""
    model, seen = made_model().eval(), []
    images = torch.randn(5, 3, 12, 14, generator=torch.Generator().manual_seed(1))
    captums, mine = made(name, model, list(model.modules())[-6] if name in OF_LAYERS else None)
    chosen: Any = (1, 2, 2) if name.startswith("Neuron") else [1, 4, 0, 0, 3]
    expected = captums.attribute(images.clone(), chosen)
    handle = model.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    found = mine.attribute(images, chosen)
    handle.remove()
    same(found, expected)
    assert found.is_contiguous()
    assert seen[0]
    assert seen[-1] == (made_model is cnn)


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a.relu() + 1, b.relu() * 2


class HasPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.pair(x, x * 3)
        return torch.stack([(a * b).sum((1, 2, 3)), a.sum((1, 2, 3))], 1)


@pytest.mark.parametrize("at_input", [False, True])
def test_layers_with_two_tensors(x: Tensor, at_input: bool) -> None:
    model = HasPair()
    captums, mine = made("LayerGradCam", model, model.pair)
    arguments: dict[str, Any] = {"target": 0, "attribute_to_layer_input": at_input}
    same(mine.attribute(x, **arguments), captums.attribute(x.clone(), **arguments), exact=True)
    mine = ours.NeuronGuidedBackprop(model, model.pair)
    with pytest.raises(AssertionError, match="function for a layer with 2 tensors"):
        mine.attribute(x, (0, 0, 0))
    with pytest.raises(AssertionError, match="one tensor for GuidedGradCam, got 2"):
        ours.GuidedGradCam(model, model.pair).attribute(x, 0)


def test_inputs_that_grad_cam_cannot_be_resized_to(x: Tensor) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 3)

        def forward(self, image: Tensor, vector: Tensor) -> Tensor:
            return self.layer(image).relu().sum((1, 2, 3))[:, None] * vector

    model = Model()
    captums, mine = made("GuidedGradCam", model, model.layer)
    inputs = (x, torch.ones(2, 1))
    with pytest.warns(UserWarning, match="interpolate"):
        expected = captums.attribute(inputs, 0)
    with pytest.warns(UserWarning, match="cannot be resized"):
        found = mine.attribute(inputs, 0)
    same(found, expected, exact=True)
    assert found[1].shape == (0,)


@pytest.mark.parametrize("name", TEN)
def test_noise_tunnel(model: nn.Sequential, x: Tensor, name: str, swept: list[str]) -> None:
    results = []
    options: dict[str, Any] = {"target": [1, 4], "nt_samples": 3, "nt_type": "vargrad", "stdevs": 0.2}
    if name == "Occlusion":
        options |= {"sliding_window_shapes": (3, 6, 7), "strides": (3, 6, 7)}
    if name == "FeatureAblation":
        options |= {"feature_mask": masks()["rectangles"]}
    if name.startswith("Neuron"):
        options["neuron_selector"] = (1, 2, 2)
        del options["target"]
    for attribution in made(name, model, model[3] if name in OF_LAYERS else None):
        torch.manual_seed(0)
        results.append(theirs.NoiseTunnel(attribution).attribute(x, **options))
    same(results[1], results[0])
    assert not swept


def test_gradient_functions_of_others_are_used(model: nn.Sequential, x: Tensor) -> None:
    attribution = ours.Saliency(model)
    attribution.gradient_func = lambda forward_func, inputs, target, extra: tuple(0 * each + 3.0 for each in inputs)
    assert torch.equal(attribution.attribute(x, 1), torch.full_like(x, 3.0))


def test_data_loaders_are_accepted(model: nn.Sequential, x: Tensor) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=1)
    mask = torch.arange(14)[None, None, None] // 7
    found = theirs.DataLoaderAttribution(ours.FeatureAblation(model)).attribute(loader, feature_mask=mask)
    expected = theirs.DataLoaderAttribution(theirs.FeatureAblation(model)).attribute(loader, feature_mask=mask)
    same(found, expected)


# --------------------------------------------------------------------------------------- faults that captum's have


def state(model: nn.Module) -> list[Any]:
    return [
        (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks), module.training)
        for module in model.modules()
    ]


@pytest.mark.parametrize("name", [*TEN, "IntegratedGradients", "LayerGradientXActivation"])
def test_nothing_is_left_after_an_exception(name: str, x: Tensor) -> None:
    """captum leaves ``requires_grad`` on inputs, and hooks on inputs that go into a rectifier, when a call raises."""
    model = nn.Sequential(nn.ReLU(), *cnn())
    before = state(model)
    images = x.clone()
    attribution = getattr(ours, name)(*((model, model[1]) if name in OF_LAYERS else (model,)))
    bad: dict[str, Any] = {"neuron_selector": (99,) * 9} if name.startswith("Neuron") else {"target": 99}
    if name == "Occlusion":
        bad["sliding_window_shapes"] = (3, 4, 4)
    with pytest.raises((AssertionError, IndexError)):
        attribution.attribute(images, **bad)
    assert state(model) == before
    assert not images.requires_grad
    assert not images._backward_hooks


def test_memory_does_not_grow_with_calls(model: nn.Sequential, x: Tensor) -> None:
    """captum's GuidedBackprop keeps the handles of every call in a list."""
    captums, mine = made("GuidedBackprop", model)
    for attribution in (captums, mine):
        for _ in range(3):
            attribution.attribute(x.clone(), 1)
    assert len(captums.backward_hooks) > 0
    assert len(mine.backward_hooks) == 0


def test_masks_are_made_on_the_device_of_the_inputs() -> None:
    """captum 0.9 makes some on the CPU when several perturbations of several inputs are computed at once."""

    class Sums(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a.sum((1, 2, 3)) + b.sum((1, 2, 3)))[:, None]

    image = torch.ones(1, 1, 4, 4, device="meta")
    arguments: dict[str, Any] = {
        "inputs": (image, image.clone()), "sliding_window_shapes": ((1, 2, 2), (1, 2, 2)), "target": 0,
        "strides": ((1, 2, 2), (1, 2, 2)), "perturbations_per_eval": 3,
    }  # fmt: skip
    captums, mine = made("Occlusion", Sums())
    with pytest.raises(RuntimeError, match="device"):
        captums.attribute(**arguments)
    assert [each.device.type for each in mine.attribute(**arguments)] == ["meta", "meta"]


@pytest.mark.parametrize("name", ["GuidedBackprop", "Deconvolution"])
@pytest.mark.parametrize("rectifier", [F.relu, nn.ReLU6(), torch.relu_, lambda x: x.clamp(min=0)])
def test_every_way_of_writing_a_rectifier_follows_the_rule(
    x: Tensor, name: str, rectifier: Callable[[Tensor], Tensor]
) -> None:
    """captum's see modules of the class ReLU only, and pass over the others in silence."""

    class Model(nn.Module):
        def __init__(self, rectifier: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last, self.rectifier = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), rectifier

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.rectifier(self.first(x)).mean((2, 3)))
            return out

    reference = getattr(theirs, name)(Model(nn.ReLU())).attribute(x.clone(), 1)
    assert not torch.allclose(getattr(theirs, name)(Model(rectifier)).attribute(x.clone(), 1), reference)
    same(getattr(ours, name)(Model(rectifier)).attribute(x, 1), reference, exact=True)


def test_a_rectifier_that_is_used_twice(x: Tensor) -> None:
    """captum keeps one gradient a module: the second use's is used for the first too."""

    class Twice(nn.Module):
        def __init__(self, other: nn.Module | None = None) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
            self.relu = nn.ReLU()
            self.other = other or self.relu

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.other(self.second(self.relu(self.first(x)))).mean((2, 3)))
            return out

    expected = theirs.Deconvolution(Twice(nn.ReLU())).attribute(x.clone(), 1)
    same(ours.Deconvolution(Twice()).attribute(x, 1), expected, exact=True)


def test_other_activations_are_named(x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(480, 3))
    for images in (x, torch.cat([x, x])):
        with pytest.warns(fastviz.RectifierWarning, match="GELU") as caught:
            ours.GuidedBackprop(model).attribute(images, 1)
        assert caught[0].filename == __file__


@pytest.mark.parametrize("name", [*GRADIENTS, *NEURONS_AND_CAMS])
def test_frozen_parameters(x: Tensor, name: str) -> None:
    model, frozen = cnn(), cnn().requires_grad_(False)
    results = []
    for each in (model, frozen):
        attribution = getattr(ours, name)(*((each, each[3]) if name in OF_LAYERS else (each,)))
        results.append(attribution.attribute(x, (1, 2, 2) if name.startswith("Neuron") else 1))
    same(results[1], results[0], exact=True)


def test_models_that_work_in_place_on_their_input(x: Tensor, swept: list[str]) -> None:
    """captum changes the image, and compares with what is left of it."""
    model = nn.Sequential(nn.ReLU(inplace=True), *cnn()).eval()
    separate = nn.Sequential(nn.ReLU(), *cnn()).eval()
    images = x.clone()
    expected = theirs.Occlusion(separate).attribute(x, (3, 6, 7), 3, target=1, baselines=-0.5)
    same(ours.Occlusion(model).attribute(images, (3, 6, 7), 3, target=1, baselines=-0.5), expected)
    same(ours.Saliency(model).attribute(images, 1), theirs.Saliency(separate).attribute(x.clone(), 1), exact=True)
    assert torch.equal(images, x)
    assert not swept


# --------------------------------------------------------------------------------------------------------- progress


@pytest.mark.parametrize("per_eval", [1, 3])
def test_progress(
    model: nn.Sequential, x: Tensor, per_eval: int, capsys: pytest.CaptureFixture[str], swept: list[str]
) -> None:
    """captum 0.9's bar of Occlusion counts pixels, and so never comes to its end."""
    options: dict[str, Any] = {"target": 1, "show_progress": True, "perturbations_per_eval": per_eval}
    ours.Occlusion(model).attribute(x, (3, 6, 7), (3, 6, 7), **options)
    total = {1: 5, 3: 3}[per_eval]
    assert f"Occlusion attribution: 100%|██████████| {total}/{total}" in capsys.readouterr().err
    ours.FeatureAblation(model).attribute(x, feature_mask=masks()["each image"], **options)
    assert "Feature Ablation attribution: 100%" in capsys.readouterr().err
    assert not swept


def test_no_progress_unless_asked(model: nn.Sequential, x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    ours.Occlusion(model).attribute(x, (3, 6, 7), (3, 6, 7), target=1)
    assert capsys.readouterr().err == ""


# --------------------------------------------------------------------------------------------------- without captum

ALONE = """
import sys
sys.modules["captum"] = None  # importing it fails
import torch
from torch import nn
from fastviz.compat import captum

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 6)).eval()
x = torch.randn(2, 3, 8, 8)
found = {
    "Occlusion": captum.Occlusion(model).attribute(x, (3, 4, 4), (3, 2, 2), target=1, show_progress=True),
    "FeatureAblation": captum.FeatureAblation(model).attribute(x, target=1, feature_mask=torch.arange(8) // 3),
    **{name: getattr(captum, name)(model).attribute(x, target=1)
       for name in ("Saliency", "InputXGradient", "GuidedBackprop", "Deconvolution")},
    **{name: getattr(captum, name)(model, model[0]).attribute(x, (1, 2, 2))
       for name in ("NeuronGuidedBackprop", "NeuronDeconvolution")},
    **{name: getattr(captum, name)(model, model[0]).attribute(x, 1) for name in ("LayerGradCam", "GuidedGradCam")},
    "IntegratedGradients": captum.IntegratedGradients(model).attribute(x, target=1),
    "LayerActivation": captum.LayerActivation(model, model[0]).attribute(x),
    "LayerGradientXActivation": captum.LayerGradientXActivation(model, model[0]).attribute(x, 1),
}
assert captum.NoiseTunnel(captum.Saliency(model)).get_name() == "Noise Tunnel"
assert captum.LayerConductance(model, model[0]).has_convergence_delta()
assert captum.FeatureAblation.get_name() == "Feature Ablation"
assert captum.Occlusion(model).multiplies_by_inputs and not captum.Saliency(model).has_convergence_delta()
try:
    captum.Occlusion(lambda x: x).attribute(x, (3, 4, 4))
except ImportError as error:
    assert 'pip install "fastviz[captum]"' in str(error)
else:
    raise SystemExit("there was no error")
torch.save(found, sys.argv[1])
"""


def test_without_captum(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(tmp_path / "found.pt")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
    found = torch.load(tmp_path / "found.pt")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 6)).eval()
    x = torch.randn(2, 3, 8, 8)
    for name in ALONE_TOO:
        attribution = getattr(theirs, name)(*((model, model[0]) if name in OF_LAYERS else (model,)))
        arguments: dict[str, Any] = {"neuron_selector": (1, 2, 2)} if name.startswith("Neuron") else {"target": 1}
        if name == "LayerActivation":
            arguments = {}
        if name == "Occlusion":
            arguments |= {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2)}
        if name == "FeatureAblation":
            arguments |= {"feature_mask": torch.arange(8) // 3}
        same(found[name], attribution.attribute(x.clone(), **arguments))
