"""The substitutes of pytorch-grad-cam's classes against its own, number for number, and their manners."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastviz.compat import grad_cam as ours
from fastviz.compat.grad_cam import _base

theirs = pytest.importorskip("pytorch_grad_cam")


def cnn(*, in_place: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(in_place), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 5)),
    )


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 14, 18, generator=torch.Generator().manual_seed(1))


class Category:
    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, output: Tensor) -> Tensor:
        return output[self.category]


def close(found: Any, expected: Any) -> None:
    assert found.dtype == expected.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize("name", ["GradCAM", "GuidedBackpropReLUModel"])
def test_signatures(name: str) -> None:
    """Ours may be called without targets where theirs want a None."""
    for method in ("__init__", "__call__"):
        mine, other = (inspect.signature(getattr(getattr(each, name), method)).parameters for each in (ours, theirs))
        assert list(mine) == list(other)
        for key, parameter in other.items():
            if parameter.default is not inspect.Parameter.empty:
                assert mine[key].default == parameter.default
    assert issubclass(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("layers", [[5], [2], [0, 4], [1, 3, 5]], ids=str)
@pytest.mark.parametrize("targets", [None, [4, 0, 4]], ids=str)
def test_grad_cam(x: Tensor, layers: list[int], targets: list[int] | None) -> None:
    """The original takes what a rectifier that works in place leaves for the output of the layer before (1 here)."""
    model, separate = cnn().eval(), cnn(in_place=False).eval()
    chosen = None if targets is None else [Category(k) for k in targets]
    expected = theirs.GradCAM(separate, [separate[k] for k in layers])(x, chosen)
    close(ours.GradCAM(model, [model[k] for k in layers])(input_tensor=x, targets=chosen), expected)


class Reuses(nn.Module):
    """One rectifier that is called three times, as those of a ResNet's blocks are, and one convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu, self.linear = nn.ReLU(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.second(x))
        x = self.relu(self.second(F.max_pool2d(x, 2)) + 0.1)
        return self.linear(x.mean((2, 3)))


@pytest.mark.parametrize(
    "layers",
    [["relu"], ["second"], ["relu", "second"], ["second", "relu"], ["relu", "relu"], ["second", "first", "relu"]],
    ids=str,
)
def test_layers_that_are_called_several_times(x: Tensor, layers: list[str]) -> None:
    """pytorch-grad-cam takes the first calls of its layers, as many as there are layers; we took each layer's last."""
    model = Reuses().eval()
    chosen = [model.get_submodule(name) for name in layers]
    expected = theirs.GradCAM(model, chosen)(x, [Category(1)] * 3)
    close(ours.GradCAM(model, chosen)(x, [Category(1)] * 3), expected)


def test_larger_batches(x: Tensor) -> None:
    """From four images on the model gets them in channels_last memory."""
    model, separate, images = cnn().eval(), cnn(in_place=False).eval(), torch.cat([x, x.flip(3)])
    close(ours.GradCAM(model, [model[5]])(images), theirs.GradCAM(separate, [separate[5]])(images, None))


@pytest.mark.parametrize("size", [(14, 18), (7, 30), (4, 5)])
def test_resizing_is_opencvs(size: tuple[int, int]) -> None:
    """Larger, smaller, and both."""
    from pytorch_grad_cam.utils.image import scale_cam_image

    maps = torch.rand(2, 9, 11)
    close(_base.scaled(maps, size).numpy(), scale_cam_image(maps.numpy(), size[::-1]))


def test_maps_of_zeros(x: Tensor) -> None:
    """A target that the layer only speaks against: nothing is left after the ReLU, and nothing is divided by zero."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[4].weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    expected = theirs.GradCAM(model, [model[1]])(x, [Category(0)] * 3)
    found = ours.GradCAM(model, [model[1]])(x, [Category(0)] * 3)
    assert not found.any()
    assert np.array_equal(found, expected)


def test_reshape_transform(x: Tensor) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.layer, self.last = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.layer(self.first(x.flatten(2).mT).relu()).square().mean(1))
            return out

    def as_maps(tokens: Tensor) -> Tensor:
        return tokens.mT.unflatten(2, (14, 18))

    model = Tokens()
    expected = theirs.GradCAM(model, [model.layer], as_maps)(x, None)
    close(ours.GradCAM(model, [model.layer], as_maps)(x), expected)
    with pytest.raises(ValueError, match=r"maps \[N, K, h, w\], got \[3, 252, 8\]; reshape_transform"):
        ours.GradCAM(model, [model.layer])(x)


@pytest.mark.parametrize(
    "options", [{"eigen_smooth": True}, {"aug_smooth": True}, {"aug_smooth": True, "eigen_smooth": True}]
)
def test_smoothing_is_theirs(x: Tensor, options: dict[str, bool]) -> None:
    model = cnn()
    before = [module.training for module in model.modules()]
    model[0].weight.grad = held = torch.ones_like(model[0].weight)
    separate = cnn().eval()
    expected = theirs.GradCAM(separate, [separate[5]])(x, [Category(1)] * 3, **options)
    close(ours.GradCAM(model, [model[5]])(x, [Category(1)] * 3, **options), expected)
    assert [module.training for module in model.modules()] == before
    assert model[0].weight.grad is held
    assert model[4].weight.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_volumes_are_theirs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 2))
    volume = torch.randn(2, 1, 5, 6, 7)
    expected = theirs.GradCAM(model, [model[1]])(volume, None)
    close(ours.GradCAM(model, [model[1]])(volume, None), expected)


def test_methods_that_build_on_grad_cam(x: Tensor) -> None:
    """FinerCAM asks for pytorch-grad-cam's recorder, which is made for it, and goes when it is done."""
    model, separate = cnn().eval(), cnn().eval()
    with theirs.FinerCAM(separate, [separate[5]], base_method=theirs.GradCAM) as cam:
        expected = cam(x)
    with theirs.FinerCAM(model, [model[5]], base_method=ours.GradCAM) as cam:
        close(cam(x), expected)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("category", [3, None])
def test_guided_backprop_of_one_image(x: Tensor, category: int | None) -> None:
    model, separate = cnn().eval(), cnn().eval()
    expected = theirs.GuidedBackpropReLUModel(separate, "cpu")(x[:1].clone(), category)
    found = ours.GuidedBackpropReLUModel(model, "cpu")(x[:1], category)
    close(found, expected)
    assert found.shape == (14, 18, 3)


# --------------------------------------------------------------------------------------------- faults of the original


@pytest.mark.parametrize("category", [None, 3, [0, 4, 1], torch.tensor([0, 4, 1]), np.array([2, 2, 3])], ids=str)
def test_guided_backprop_of_a_batch(x: Tensor, category: Any) -> None:
    """The original gives the first image's, for the class that is the highest in the whole batch."""
    model = cnn().eval()
    found = ours.GuidedBackpropReLUModel(model)(x, category)
    assert found.shape == (3, 14, 18, 3)
    for number in range(3):
        one = category if category is None or isinstance(category, int) else int(category[number])
        separate = cnn().eval()
        close(found[number], theirs.GuidedBackpropReLUModel(separate)(x[number : number + 1].clone(), one))


def test_a_second_call_gives_the_same(x: Tensor) -> None:
    """The original adds to ``grad`` of the caller's tensor, and gives the sum."""
    mine, other = ours.GuidedBackpropReLUModel(cnn()), theirs.GuidedBackpropReLUModel(cnn())
    images = x[:1].clone()
    first = mine(images, 1)
    assert np.array_equal(mine(images, 1), first)
    assert images.grad is None
    assert not images.requires_grad
    once = other(images, 1).copy()
    np.testing.assert_allclose(other(images, 1), 2 * once, rtol=1e-5)


@pytest.mark.parametrize("rectifier", [F.relu, nn.ReLU6()], ids=["F.relu", "ReLU6"])
def test_every_rectifier_follows_the_rule(x: Tensor, rectifier: Any) -> None:
    class Model(nn.Module):
        def __init__(self, rectifier: Any) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last, self.rectifier = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), rectifier

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.rectifier(self.first(x)).mean((2, 3)))
            return out

    expected = theirs.GuidedBackpropReLUModel(Model(nn.ReLU()))(x[:1].clone(), 1)
    assert not np.allclose(theirs.GuidedBackpropReLUModel(Model(rectifier))(x[:1].clone(), 1), expected)
    close(ours.GuidedBackpropReLUModel(Model(rectifier))(x[:1], 1), expected)


def test_the_model_is_as_it_was(x: Tensor) -> None:
    """The original leaves it in evaluation mode, with hooks, other rectifiers and gradients of its parameters."""
    model = cnn().train()
    model[3].eval()
    modules, modes = list(model.modules()), [module.training for module in model.modules()]
    cam, guided = ours.GradCAM(model, [model[5]]), ours.GuidedBackpropReLUModel(model)

    def check() -> None:
        assert list(model.modules()) == modules
        assert [module.training for module in modules] == modes
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())

    cam(x)
    guided(x)
    check()
    with pytest.raises(IndexError):
        cam(x, [Category(99)] * 3)
    with pytest.raises(RuntimeError):
        cam(x[:, :2])
    with pytest.raises(ValueError, match="target should be a class from 0 to 4"):
        guided(x, 99)
    check()


def test_exceptions_are_passed_on(x: Tensor) -> None:
    """The original's ``with`` prints an IndexError and goes on."""
    model = cnn().eval()
    with pytest.raises(IndexError), ours.GradCAM(model, [model[5]]) as cam:
        cam(x, [Category(99)] * 3)
    with theirs.GradCAM(model, [model[5]]) as cam:
        cam(x, [Category(99)] * 3)


def test_frozen_parameters(x: Tensor) -> None:
    """ "element 0 of tensors does not require grad" is what the original says to them."""
    model, frozen = cnn().eval(), cnn().eval().requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        theirs.GradCAM(frozen, [frozen[5]])(x, None)
    assert np.array_equal(ours.GradCAM(frozen, [frozen[5]])(x), ours.GradCAM(model, [model[5]])(x))
    assert np.array_equal(ours.GuidedBackpropReLUModel(frozen)(x, 1), ours.GuidedBackpropReLUModel(model)(x, 1))


def test_every_image_has_its_target(x: Tensor) -> None:
    """The original takes as many images as there are targets, and gives maps of zeros for the others."""
    model = cnn().eval()
    with pytest.raises(ValueError, match="targets should have one entry for each of 3 images, got 1"):
        ours.GradCAM(model, [model[5]])(x, [Category(1)])


def test_layers_that_do_not_matter(x: Tensor) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aside = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            out: Tensor = self.used(x).mean((2, 3))
            return out

    model = Model()
    with pytest.raises(ValueError, match=r"do not on target_layers\[1\]"):
        ours.GradCAM(model, [model.used, model.aside])(x)
    with pytest.raises(AssertionError, match="layer should be called"):
        ours.GradCAM(model, [nn.ReLU()])(x)


# ------------------------------------------------------------------------------------------- without pytorch-grad-cam

ALONE = """
import sys
sys.modules["pytorch_grad_cam"] = None  # importing it fails
import torch
from torch import nn
from fastviz.compat import grad_cam

model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
x = torch.rand(2, 3, 8, 8)
with grad_cam.GradCAM(model, [model[1]]) as cam:
    assert cam(x).shape == (2, 8, 8)
    try:
        cam(x[:, :, None])
    except ImportError as error:
        assert 'pip install "fastviz[grad-cam]"' in str(error)
    else:
        raise SystemExit("there was no error")
assert grad_cam.GuidedBackpropReLUModel(model)(x[:1]).shape == (8, 8, 3)
"""


def test_without_pytorch_grad_cam() -> None:
    command = [sys.executable, "-c", ALONE]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr
