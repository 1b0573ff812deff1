"""The other classes of pytorch-grad-cam against its own, number for number: formulas, passes, targets, metrics."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastviz.compat import grad_cam as ours

theirs = pytest.importorskip("pytorch_grad_cam")
model_targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
road = pytest.importorskip("pytorch_grad_cam.metrics.road")

CLASSES = [
    *("GradCAM", "GradCAMPlusPlus", "XGradCAM", "LayerCAM", "HiResCAM", "GradCAMElementWise", "EigenCAM"),
    *("EigenGradCAM", "SegEigenCAM", "FEM", "KPCA_CAM", "RandomCAM", "FullGrad", "AblationCAM", "ScoreCAM"),
]
METRICS = [
    *("ROADMostRelevantFirst", "ROADLeastRelevantFirst", "ROADMostRelevantFirstAverage"),
    *("ROADLeastRelevantFirstAverage", "ROADCombined"),
]
f64 = torch.float64


def cnn(*, negative: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3), nn.SiLU() if negative else nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(32, 5)),
    )
    nn.init.normal_(model[1].bias)
    with torch.no_grad():
        model[9].weight *= 100  # large values, so that the 1e-7 that maps are divided with does not show
    return model.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 14, 18, generator=torch.Generator().manual_seed(1))


def run(library: Any, name: str, layers: list[int], x: Tensor, targets: Any, **options: Any) -> Any:
    negative, own = options.pop("negative", False), options.pop("own", {})
    model = cnn(negative=negative).to(x.dtype)
    np.random.seed(3)
    cam = getattr(library, name)(model, [] if name == "FullGrad" else [model[at] for at in layers], **own)
    return cam(x.clone(), targets, **options)


def close(found: Any, expected: Any, near: float = 2e-5) -> None:
    assert found.dtype == expected.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=near)


@pytest.mark.parametrize("name", [*CLASSES, *METRICS])
def test_signatures(name: str) -> None:
    other = getattr(road if name in METRICS else theirs, name)
    for method in ("__init__", "__call__"):
        mine, expected = (inspect.signature(getattr(each, method)).parameters for each in (getattr(ours, name), other))
        if name in METRICS:
            assert set(mine) <= set(expected) | {"return_visualization", "return_diff"}
        else:
            assert list(mine) == list(expected)
    assert issubclass(getattr(ours, name), other)


@pytest.mark.parametrize("eigen_smooth", [False, True], ids=["", "eigen"])
@pytest.mark.parametrize("layers", [[5], [2, 4]], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_classes(x: Tensor, name: str, layers: list[int], eigen_smooth: bool) -> None:
    if name == "AblationCAM" and layers == [2, 4]:
        layers = [2, 5]
    targets = [model_targets.ClassifierOutputTarget(k) for k in (4, 0, 4)]
    images = x.double()
    expected = run(theirs, name, layers, images, targets, eigen_smooth=eigen_smooth)
    found = run(ours, name, layers, images, targets, eigen_smooth=eigen_smooth)
    # theirs subtracts scores of float32 in AblationCAM
    close(found, expected, 5e-3 if name == "AblationCAM" else 2e-5)


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "AblationCAM"])
def test_predicted_classes_in_float32(x: Tensor, name: str) -> None:
    close(run(ours, name, [5], x, None), run(theirs, name, [5], x, None), 1e-3)


@pytest.mark.parametrize("name", ["XGradCAM", "EigenCAM", "ScoreCAM", "FullGrad"])
def test_augmentation(x: Tensor, name: str) -> None:
    targets = [model_targets.ClassifierOutputTarget(k) for k in (4, 0, 4)]
    expected = run(theirs, name, [5], x.double(), targets, aug_smooth=True)
    close(run(ours, name, [5], x.double(), targets, aug_smooth=True), expected)


@pytest.mark.parametrize("own", [{}, {"batch_size": 3}, {"ratio_channels_to_ablate": 0.5}], ids=str)
@pytest.mark.parametrize("negative", [False, True])
def test_ablation_values_far_below(x: Tensor, negative: bool, own: dict[str, Any]) -> None:
    """Channels of layers with negative values: 1e7 below the smallest, each of a batch 1e7 below the one before."""
    targets = [model_targets.ClassifierOutputSoftmaxTarget(k) for k in (4, 0, 4)]
    if not negative:
        targets = [model_targets.ClassifierOutputTarget(k) for k in (4, 0, 4)]
    options = {"negative": negative, "own": own}
    expected = run(theirs, "AblationCAM", [5], x.double(), targets, **options)
    close(run(ours, "AblationCAM", [5], x.double(), targets, **options), expected, 5e-3)


def test_other_ablation_layers_are_theirs(x: Tensor) -> None:
    class Halved(theirs.AblationLayer):  # type: ignore[misc, name-defined]
        def __call__(self, x: Tensor) -> Tensor:
            output = self.activations
            for row in range(len(output)):
                output[row, self.indices[row]] *= 0.5
            return output

    for own in ({"ablation_layer": Halved()}, {"ablation_layer": Halved(), "batch_size": 4}):
        expected = run(theirs, "AblationCAM", [5], x, None, own=own)
        close(run(ours, "AblationCAM", [5], x, None, own=own), expected, 1e-4)


class Segmenting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return 100 * self.head(self.body(x).relu())


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "EigenGradCAM", "AblationCAM", "ScoreCAM", "SegEigenCAM"])
def test_targets_of_segmentation(x: Tensor, name: str) -> None:
    mask = np.float32(np.random.default_rng(0).random((14, 18)) > 0.5)
    model, images = Segmenting().double().eval(), x.double()
    chosen = [model_targets.SemanticSegmentationTarget(k, mask) for k in (0, 2, 3)]
    expected = getattr(theirs, name)(model, [model.body])(images, chosen)
    close(getattr(ours, name)(model, [model.body])(images, chosen), expected, 5e-3 if name == "AblationCAM" else 2e-5)


class Detecting(nn.Module):
    """A list of dictionaries, as torchvision's detectors give."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        means = self.body(x).relu().mean((2, 3)).sigmoid()
        boxes = torch.stack([means[:, 0], means[:, 1], means[:, 0] + 4, means[:, 1] + 4 * means[:, 2]], 1)[:, None]
        return [
            {"boxes": box, "scores": score[None], "labels": torch.tensor([1])}
            for box, score in zip(boxes, means[:, 3], strict=True)
        ]


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "EigenCAM", "ScoreCAM"])
def test_targets_of_boxes(x: Tensor, name: str) -> None:
    model, images = Detecting().double().eval(), x[:1].double()
    chosen = [model_targets.FasterRCNNBoxScoreTarget([1], [torch.tensor([0.5, 0.5, 4.5, 3.0])], iou_threshold=0.1)]
    expected = getattr(theirs, name)(model, [model.body])(images, chosen)
    close(getattr(ours, name)(model, [model.body])(images, chosen), expected, 1e-3)


@pytest.mark.parametrize("target", ["ClassifierOutputSoftmaxTarget", "ClassifierOutputReST"])
def test_other_targets_of_classes(x: Tensor, target: str) -> None:
    chosen = [getattr(model_targets, target)(k) for k in (4, 0, 4)]
    for name in ("GradCAMElementWise", "ScoreCAM"):
        expected = run(theirs, name, [5], x.double(), chosen)
        close(run(ours, name, [5], x.double(), chosen), expected, 1e-3)


def test_raw_scores(x: Tensor) -> None:
    """Of a network with one number per image."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
    ).double()
    chosen = [model_targets.RawScoresOutputTarget()] * 3
    for name in ("HiResCAM", "ScoreCAM", "AblationCAM"):
        expected = getattr(theirs, name)(model, [model[1]])(x.double(), chosen)
        close(getattr(ours, name)(model, [model[1]])(x.double(), chosen), expected, 5e-3)


def test_a_class_of_your_own(x: Tensor) -> None:
    """What is derived from a class brings its formula, or its way of bringing layers together."""

    def derived(library: Any, which: str) -> Any:
        class Own(library.GradCAM):  # type: ignore[misc]
            if which == "weights":

                def get_cam_weights(self, input_tensor, target_layer, targets, activations, grads):  # type: ignore[no-untyped-def]
                    return np.abs(grads).max(axis=(2, 3))

            else:

                def aggregate_multi_layers(self, cam_per_target_layer):  # type: ignore[no-untyped-def]
                    return np.float32(np.concatenate(cam_per_target_layer, axis=1).max(axis=1))

        return Own

    for which in ("weights", "layers"):
        model = cnn().double()
        layers = [model[2], model[5]]
        expected = derived(theirs, which)(model, layers)(x.double(), None)
        close(derived(ours, which)(model, layers)(x.double(), None), expected)
        assert all(parameter.grad is None or which == "layers" for parameter in cnn().parameters())


@pytest.mark.parametrize("name", CLASSES)
def test_the_model_is_as_it_was(x: Tensor, name: str) -> None:
    model = cnn().train()
    modules, modes = list(model.modules()), [module.training for module in model.modules()]
    cam = getattr(ours, name)(model, [model[5]])
    for options in ({}, {"eigen_smooth": True}):
        cam(x, None, **options)
        assert list(model.modules()) == modules
        assert [module.training for module in modules] == modes
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        assert all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", METRICS)
def test_road(x: Tensor, name: str, channels: int) -> None:
    """The same noise from the same generator; what both solve differs by rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4))
    images, cams = x[:, :channels].contiguous(), np.random.default_rng(1).random((3, 14, 18), np.float32)
    chosen = [model_targets.ClassifierOutputTarget(k) for k in (3, 0, 1)]
    single = name in ("ROADMostRelevantFirst", "ROADLeastRelevantFirst")
    for argument in (75, "auto") if single else ([20, 60],):
        found = []
        for library in (ours, road):
            torch.manual_seed(5)
            found.append(getattr(library, name)(argument)(images, cams, chosen, model))
        np.testing.assert_allclose(found[0], found[1], rtol=0, atol=2e-5)
        assert np.abs(found[0]).max() > 1e-3
    if single:
        one = [getattr(library, name)(75)(images, cams, chosen, model, return_diff=False) for library in (ours, road)]
        np.testing.assert_allclose(one[0], one[1], rtol=0, atol=0.05)  # other noise
        values, pictures = getattr(ours, name)(75)(images, cams, chosen, model, return_visualization=True)
        assert pictures.shape == images.shape
        assert values.shape == (3,)
