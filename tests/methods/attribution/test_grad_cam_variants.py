"""The CAM family by gradients: values by hand, pytorch-grad-cam number for number, one pass for many, fusion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastviz as fv
from fastviz.images import tensors
from fastviz.methods.attribution.cam_formulas import GRADIENT, principal_component, with_positive_peak

f64 = torch.float64

# method of ours → class of pytorch-grad-cam
THEIRS = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMPlusPlus",
    "xgrad_cam": "XGradCAM",
    "layer_cam": "LayerCAM",
    "hires_cam": "HiResCAM",
    "element_wise_cam": "GradCAMElementWise",
    "seg_eigen_cam": "SegEigenCAM",
}
SINGLE: list[Callable[..., Tensor]] = [
    *(fv.grad_cam_plus_plus, fv.xgrad_cam, fv.layer_cam, fv.hires_cam, fv.element_wise_cam),
    *(fv.eigen_cam, fv.eigen_grad_cam),
]


class Counting(nn.Module):
    """A network that counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.relu, self.fc, self.passes = nn.ReLU(inplace=True), nn.Linear(8, 5), 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.fc(self.relu(self.conv2(self.relu(self.conv1(x)))).mean((2, 3)))


@pytest.fixture
def model() -> Counting:
    torch.manual_seed(0)
    return Counting().to(f64).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 10, 12, dtype=f64, generator=torch.Generator().manual_seed(1))


def test_formulas_by_hand() -> None:
    """Two channels of 1x2 places."""
    A = torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]])
    G = torch.tensor([[[[1.0, -3.0]], [[4.0, 2.0]]]])
    # mean gradients -1 and 3: -1·(1, 3) + 3·(2, 0)
    expected = {
        "grad_cam": [5.0, 0.0],
        # (1·1 − 3·3)/4 = −2 and (4·2 + 2·0)/2 = 4: −2·(1, 3) + 4·(2, 0)
        "xgrad_cam": [6.0, 0.0],
        "layer_cam": [1 * 1 + 4 * 2, 0.0],
        "hires_cam": [1 * 1 + 4 * 2, 0.0],
        "element_wise_cam": [9.0, 0.0],
        # α = G²/(2G² + G³ΣA): channel 0: 1/(2+4), where G is positive; channel 1: 16/(32+128), 4/(8+16)
        "grad_cam_plus_plus": [1 / 6 + 2 * (4 * 0.1 + 2 / 6), 3 / 6],
    }
    for name, values in expected.items():
        torch.testing.assert_close(GRADIENT[name](A, G), torch.tensor([[values]]), rtol=1e-5, atol=1e-5)


def test_principal_component_by_hand() -> None:
    """Places on the line (1, 2): the projection is their distance from the mean, along it."""
    maps = torch.tensor([[[0.0, 1.0, 5.0]], [[0.0, 2.0, 10.0]]])[None]
    found = with_positive_peak(principal_component(maps))
    torch.testing.assert_close(found, torch.tensor([[[-2.0, -1.0, 3.0]]]) * 5**0.5)


@pytest.mark.parametrize("name", THEIRS)
def test_pytorch_grad_cam_gives_the_same(model: Counting, x: Tensor, name: str) -> None:
    theirs = pytest.importorskip("pytorch_grad_cam")
    category = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    weights = {key: 1e3 * value if key.startswith("fc") else value for key, value in model.state_dict().items()}
    model.load_state_dict(weights)  # large values, so that the 1e-7 it divides with does not show
    model.relu.inplace = False
    layers = [model.conv1, model.conv2]
    maps = fv.cams(model, x, 2, methods=[name], layers=["conv1", "conv2"])[name]
    for layer, mine in zip(layers, maps.values(), strict=True):
        expected = getattr(theirs, THEIRS[name])(model, [layer])(x, [category(2)] * 3)
        found = tensors.normalize(tensors.resize_maps(tensors.normalize(mine), 10, 12)).numpy()
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("shape", [(3, 8, 4, 5), (2, 30, 3, 3)])
def test_projections_are_pytorch_grad_cams(shape: tuple[int, ...]) -> None:
    """But for the sign, which theirs leave to chance."""
    theirs = pytest.importorskip("pytorch_grad_cam.utils.svd_on_activations")
    maps = torch.rand(shape, dtype=f64, generator=torch.Generator().manual_seed(2)).relu()
    maps[0, 0, 0, 0] = torch.nan
    found = principal_component(maps)
    np.testing.assert_allclose(found.abs().numpy(), np.abs(theirs.get_2d_projection(maps.numpy())), atol=1e-6)
    signed = theirs.get_2d_projection_with_sign_correction(maps.numpy())
    np.testing.assert_allclose(with_positive_peak(found).numpy(), signed, atol=1e-6)
    smooth = GRADIENT["layer_cam"].smooth()(maps, torch.ones_like(maps))
    np.testing.assert_allclose(smooth.numpy(), np.maximum(signed, 0), atol=1e-6)


@pytest.mark.parametrize("method", SINGLE, ids=[each.__name__ for each in SINGLE])
def test_one_alone_is_one_of_several(model: Counting, x: Tensor, method: Callable[..., Tensor]) -> None:
    several = fv.cams(model, x, [1, 3], methods=[*GRADIENT, "eigen_cam"], layers=["conv1", "conv2"], size=(5, 7))
    found = method(model, x, [1, 3], layer="conv2", size=(5, 7))
    assert found.shape == (3, 2, 5, 7)
    torch.testing.assert_close(found, several[method.__name__]["conv2"])
    torch.testing.assert_close(method(model, x, 3, layer="conv2", size=(5, 7)), found[:, 1])
    assert method(model, x[:0], layer="conv2").shape == (0, 6, 8)


def test_everything_from_one_pass(model: Counting, x: Tensor) -> None:
    model(x)
    before = model.passes
    fv.cams(model, x, 1, methods=list(GRADIENT), layers=["conv1", "conv2"])
    assert model.passes == before + 1


def test_default_layer_and_wrong_names(model: Counting, x: Tensor) -> None:
    assert list(fv.cams(model, x, 1, methods=["layer_cam"])["layer_cam"]) == ["relu"]
    with pytest.raises(ValueError, match=r"methods .*layer_cam"):
        fv.cams(model, x, 1, methods=["layer_camm"])
    with pytest.raises(TypeError, match="layer should be a dotted module name, got list; cams takes several"):
        fv.layer_cam(model, x, layer=["conv1"])  # type: ignore[arg-type]


def test_dead_layers_give_zeros_and_say_so(x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).to(f64)
    nn.init.constant_(model[0].bias, -1e3)
    with pytest.warns(UserWarning, match="gradient of zero everywhere"):
        found = fv.cams(model, x, 1, methods=[*GRADIENT, "eigen_cam"], layers=["0"])
    for name in GRADIENT:
        assert not found[name]["0"].any()
    assert found["eigen_cam"]["0"].isfinite().all()
    assert not fv.eigen_cam(model, x, layer="1").any()


def test_fused_layers_are_pytorch_grad_cams(model: Counting, x: Tensor) -> None:
    theirs = pytest.importorskip("pytorch_grad_cam")
    category = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    model.relu.inplace = False
    expected = theirs.LayerCAM(model, [model.conv1, model.conv2])(x, [category(2)] * 3)
    maps = fv.cams(model, x, 2, methods=["layer_cam"], layers=["conv1", "conv2"])["layer_cam"]
    found = tensors.normalize(fv.fuse_maps(maps.values(), size=(10, 12)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)  # the 1e-7 that they divide with


def test_fusion_by_hand() -> None:
    first, second = torch.tensor([[[0.0, 1.0, 4.0]]]), torch.tensor([[[3.0, 1.0, 2.0]]])
    scaled = torch.tensor([0.0, 0.25, 1.0]), torch.tensor([1.0, 0.0, 0.5])
    torch.testing.assert_close(fv.fuse_maps([first, second])[0, 0], (scaled[0] + scaled[1]) / 2)
    torch.testing.assert_close(fv.fuse_maps([first, second], how="product")[0, 0], scaled[0] * scaled[1])
    torch.testing.assert_close(fv.fuse_maps([first, second], how="max")[0, 0], torch.maximum(*scaled))
    assert fv.fuse_maps([first, torch.rand(1, 2, 2)]).shape == (1, 2, 3)


@pytest.mark.parametrize("target", [2, [0, 2]], ids=str)
def test_augmented_is_the_mean_of_six(model: Counting, x: Tensor, target: int | list[int]) -> None:
    found = fv.augmented(fv.layer_cam, model, x, target, layer="conv2", batch_size=4)
    total = torch.zeros_like(found)
    for factor in (0.9, 1.0, 1.1):
        total += tensors.normalize(fv.layer_cam(model, x * factor, target, layer="conv2"))
        total += tensors.normalize(fv.layer_cam(model, x.flip(3) * factor, target, layer="conv2")).flip(-1)
    torch.testing.assert_close(found, total / 6)


def test_augmented_copies_are_about_the_same_class(model: Counting, x: Tensor) -> None:
    predicted = model(x).argmax(1)
    expected = fv.augmented(fv.grad_cam, model, x, predicted, layer="conv2")
    torch.testing.assert_close(fv.augmented(fv.grad_cam, model, x, layer="conv2"), expected)


def test_augmented_is_pytorch_grad_cams(model: Counting, x: Tensor) -> None:
    theirs = pytest.importorskip("pytorch_grad_cam")
    category = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    model.relu.inplace = False
    expected = theirs.LayerCAM(model, [model.conv2])(x, [category(2)] * 3, aug_smooth=True)
    found = fv.augmented(fv.layer_cam, model, x, 2, layer="conv2", size=(10, 12))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
