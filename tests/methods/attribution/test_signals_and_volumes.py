"""Gradients, class activation maps and activations of signals [N, C, L] and volumes [N, C, D, H, W], by definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastviz as fv

f64 = torch.float64


def network(axes: int) -> nn.Sequential:
    """Convolutions, pooling, a mean and a linear layer, of signals or volumes."""
    kinds: dict[str, Any] = {name: getattr(nn, f"{name}{axes}d") for name in ("Conv", "BatchNorm", "MaxPool")}
    torch.manual_seed(axes)
    first = (kinds["Conv"](2, 6, 3, padding=1), kinds["BatchNorm"](6), nn.ReLU(), kinds["MaxPool"](2))
    last = (kinds["Conv"](6, 8, 3), nn.ReLU(), getattr(nn, f"AdaptiveAvgPool{axes}d")(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(*first, *last).to(f64).eval()


SIZES = {1: (40,), 3: (12, 10, 14)}


@pytest.fixture(params=[1, 3], ids=["signal", "volume"])
def given(request: pytest.FixtureRequest) -> tuple[nn.Sequential, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return network(request.param), torch.randn(3, 2, *SIZES[request.param], dtype=f64, generator=generator)


def gradient_of(model: nn.Module, x: Tensor, k: int) -> Tensor:
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(leaf)[:, k].sum(), leaf)
    return found


def test_gradients(given: tuple[nn.Sequential, Tensor]) -> None:
    model, x = given
    expected = gradient_of(model, x, 1)
    torch.testing.assert_close(fv.input_gradient(model, x, 1), expected)
    torch.testing.assert_close(fv.saliency(model, x, 1), expected.abs().amax(1))
    torch.testing.assert_close(fv.gradient_times_input(model, x, 1), expected * x)
    both = torch.stack([gradient_of(model, x, 2), expected], dim=1)
    torch.testing.assert_close(fv.input_gradient(model, x, [2, 1]), both)
    torch.testing.assert_close(fv.saliency(model, x, [2, 1], batch_size=2), both.abs().amax(2))
    torch.testing.assert_close(fv.smooth_grad(model, x, 1, samples=1, noise=0), expected)
    noisy = fv.smooth_grad(model, x, 1, samples=4, seed=3)
    assert noisy.shape == x.shape
    assert torch.equal(noisy, fv.smooth_grad(model, x, 1, samples=4, seed=3))
    assert fv.saliency(model, x[:0], 1).shape == (0, *x.shape[2:])


def test_guided_backprop_by_hand(given: tuple[nn.Sequential, Tensor]) -> None:
    model, x = given
    leaf = x.clone().requires_grad_()
    values, handles = leaf, []
    for module in model:
        values = module(values)
        if isinstance(module, nn.ReLU):
            handles.append(values.register_hook(lambda gradient: gradient.clamp(min=0)))
    (expected,) = torch.autograd.grad(values[:, 1].sum(), leaf)
    torch.testing.assert_close(fv.guided_backprop(model, x, 1), expected)
    assert fv.deconvnet(model, x, 1).shape == x.shape


def test_class_activation_maps(given: tuple[nn.Sequential, Tensor]) -> None:
    model, x = given
    maps = model[:6](x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model[6:](maps)[:, 1].sum(), maps)
    places = tuple(range(2, x.dim()))
    expected = (gradient.mean(places, keepdim=True) * maps).sum(1).relu().detach()
    assert expected.any()
    torch.testing.assert_close(fv.grad_cam(model, x, 1), expected)
    torch.testing.assert_close(fv.grad_cam(model, x, [2, 1])[:, 1], expected)
    evidence = torch.einsum("k,nk...->n...", model[8].weight[1], maps).detach()
    torch.testing.assert_close(fv.cam(model, x, 1), evidence)
    mode = "linear" if x.dim() == 3 else "trilinear"
    large = nn.functional.interpolate(expected[:, None], x.shape[2:], mode=mode)[:, 0]
    torch.testing.assert_close(fv.grad_cam(model, x, 1, size=tuple(x.shape[2:])), large)
    guided = fv.guided_backprop(model, x, 1)
    torch.testing.assert_close(fv.guided_grad_cam(model, x, 1), guided * large[:, None])


def test_activations_and_units(given: tuple[nn.Sequential, Tensor]) -> None:
    model, x = given
    found = fv.activations(model, x, batch_size=2)
    assert list(found) == ["0", "4"]
    torch.testing.assert_close(found["4"], model[:5](x).detach())
    unit = fv.neuron("4", 3)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(unit.values(None, {"4": model[:5](leaf)}).sum(), leaf)
    torch.testing.assert_close(fv.input_gradient(model, x, unit), expected)


@pytest.mark.parametrize("axes", [1, 3])
def test_regions(axes: int) -> None:
    """The mean score over a part of a signal or volume that a network labels everywhere."""
    torch.manual_seed(0)
    kind: Any = getattr(nn, f"Conv{axes}d")
    model = nn.Sequential(kind(1, 4, 3, padding=1), nn.ReLU(), kind(4, 3, 1)).to(f64)
    x = torch.randn(2, 1, *SIZES[axes], dtype=f64)
    mask = torch.rand(SIZES[axes]) > 0.6
    target = fv.region_score(2, mask if axes == 1 else mask[None])
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 2].flatten(1)[:, mask.flatten()].mean(1).sum(), leaf)
    torch.testing.assert_close(fv.input_gradient(model, x, target), expected)


def test_a_video_network() -> None:
    import torchvision

    torch.manual_seed(0)
    model, x = torchvision.models.video.r3d_18(weights=None).eval(), torch.randn(1, 3, 8, 32, 32)
    assert fv.grad_cam(model, x, 3, layer="layer3").shape == (1, 2, 4, 4)
    found = fv.saliency(model, x, 3)
    assert found.shape == (1, 8, 32, 32)
    assert found.any()


def test_sizes_and_shapes_are_refused_in_words(given: tuple[nn.Sequential, Tensor]) -> None:
    model, x = given
    words = r"size should be \(length,\)" if x.dim() == 3 else r"size should be \(depth, height, width\)"
    with pytest.raises(TypeError, match=words):
        fv.grad_cam(model, x, 1, size=(4, 4))
    with pytest.raises(ValueError, match="x should have shape"):
        fv.saliency(model, torch.rand(3, 4, dtype=f64), 1)
