"""One word, once, about images that nobody prepared."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz.models import Preprocessing, preprocessing


def words(model: nn.Module, x: Tensor) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fv.saliency(model, x, 0)
    return [str(each.message) for each in found if "unprepared" in str(each.message)]


PICTURE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_a_picture_of_0_to_1_is_said_once_and_by_name() -> None:
    model = fv.load_model("demo")
    (said,) = words(model, PICTURE)
    assert said.startswith(
        "x looks unprepared: its values are 0 to 1, and demo takes pictures normalised, with mean 0.485"
    )
    assert not words(model, PICTURE)
    fv.forget(model)
    assert words(model, PICTURE)


def test_a_picture_of_0_to_255() -> None:
    assert "its values are 0 to 255, and demo takes" in words(fv.load_model("demo"), PICTURE * 255)[0]
    own = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert not words(own, PICTURE * 255)  # nobody knows what it takes
    assert "Sequential is not described" in words(own, (PICTURE * 255).round())[0]


def test_what_is_prepared_or_means_no_picture_is_not_mentioned() -> None:
    model = fv.load_model("demo")
    prepared = fv.images.preprocess(PICTURE, preprocessing(model))
    for x in (
        prepared,
        torch.zeros(1, 3, 64, 64),
        torch.full((1, 3, 64, 64), 0.7),
        torch.randn(2, 3, 64, 64),
        PICTURE[:0],
    ):
        assert not words(model, x)
    plain = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert not words(plain, PICTURE)
    fv.describe(plain, preprocessing=Preprocessing((64, 64), None, (0.0,) * 3, (1.0,) * 3))
    assert not words(plain, PICTURE)


def test_style_transfer_says_it_too() -> None:
    with pytest.warns(UserWarning, match="content looks unprepared"):
        fv.style_transfer(fv.load_model("demo"), PICTURE, PICTURE - 0.5, steps=1)


class Around(nn.Module):
    def __init__(self, method: Callable[..., Tensor]) -> None:
        super().__init__()
        self.method, self.model = method, fv.load_model("demo")

    def forward(self, x: Tensor) -> Tensor:
        return self.method(self.model, x, 1)


NOT_EXPORTED: dict[str, Callable[..., Tensor]] = {
    "saliency": fv.saliency,
    "smooth_grad": fv.smooth_grad,
    "guided_backprop": fv.guided_backprop,
    "integrated_gradients": lambda model, x, k: fv.integrated_gradients(model, x, k).attribution,
    "grad_cam": fv.grad_cam,
    "layer_cam": fv.layer_cam,
    "full_grad": fv.full_grad,
    "score_cam": fv.score_cam,
    "occlusion": lambda model, x, k: fv.occlusion(model, x, k).attribution,
    "rise": lambda model, x, k: fv.rise(model, x, k).attribution,
    "feature_ablation": lambda model, x, k: fv.feature_ablation(model, x, k).attribution,
    "filters": lambda model, x, k: fv.filters(model) + x.sum(),
    "activations": lambda model, x, k: fv.activations(model, x, "conv1"),
    "embedding": lambda model, x, k: fv.embedding(model, x).vectors,
    "patches": lambda model, x, k: fv.patches(model, x, "conv1").values,
    "maximize": lambda model, x, k: fv.maximize(model, k).pictures + x.sum(),
    "fool": lambda model, x, k: fv.fool(model, x, k).pictures,
    "deletion": lambda model, x, k: fv.evaluation.deletion(model, x, x.sum(1), k).values,
    "layers": lambda model, x, k: x * len(fv.layers(model)),
}


@pytest.mark.parametrize("method", NOT_EXPORTED)
def test_methods_are_not_exported(method: str) -> None:
    """captum #1778: their maps would be constants; and nothing looks at the values of images there."""
    with pytest.raises(ValueError, match=rf"^{method} of fastviz cannot be exported: .* export the network itself"):
        torch.export.export(Around(NOT_EXPORTED[method]), (PICTURE,), strict=False)
