"""Models as people have them: frozen, under inference mode, in 16 bits, wrapped, with control flow and other channels.

Each was reported to a neighbouring tool.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastviz as fv
from fastviz.methods.registry import EXPLAINERS


class Net(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x).mean((2, 3)))


def made(kind: type[Net] = Net, *arguments: Any) -> Net:
    torch.manual_seed(0)
    return kind(*arguments).eval()


def images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(1))


METHODS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "saliency": lambda model, x: fv.saliency(model, x),
    "gradient_times_input": lambda model, x: fv.gradient_times_input(model, x, 1),
    "smooth_grad": lambda model, x: fv.smooth_grad(model, x, 1, samples=2),
    "guided_backprop": lambda model, x: fv.guided_backprop(model, x, 1),
    "deconvnet": lambda model, x: fv.deconvnet(model, x, 1),
    "grad_cam": lambda model, x: fv.grad_cam(model, x, 1),
    "guided_grad_cam": lambda model, x: fv.guided_grad_cam(model, x, 1),
    "cam": lambda model, x: fv.cam(model, x, 1),
    "occlusion": lambda model, x: fv.occlusion(model, x, 1, window=8, stride=8).attribution,
}

MORE: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "activations": lambda model, x: fv.activations(model, x, "body.2"),
    "embedding": lambda model, x: fv.embedding(model, x).vectors,
    "maximize": lambda model, x: fv.maximize(model, 1, size=16, steps=2).pictures,
    "invert": lambda model, x: fv.invert(model, x[:1], "body.0", steps=2).pictures,
    "layers": lambda model, x: torch.tensor([layer.shape[0] for layer in fv.layers(model, (16, 16))]),
}


@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", {**METHODS, **MORE})
def test_frozen_and_without_gradients(method: str, inside: Callable[[], AbstractContextManager[None]]) -> None:
    run = {**METHODS, **MORE}[method]
    expected = run(made(), images())
    frozen = made().requires_grad_(False)
    with inside():
        found = run(frozen, images())  # made inside, too
    torch.testing.assert_close(found.clone(), expected)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_models_of_16_bits_give_finite_maps_that_can_be_drawn(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    found = METHODS[method](made().to(dtype), images().to(dtype))
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    exact = METHODS[method](made(), images())
    if method not in ("guided_backprop", "deconvnet", "guided_grad_cam"):  # rules of rectifiers turn at zero
        assert float((found - exact).abs().max()) < 0.1 * float(exact.abs().max())
    heat = found.abs() if found.dim() == 3 else found.abs().amax(1)
    pictures = fv.images.overlay(torch.rand(2, 3, 16, 16), heat / heat.amax())
    fv.images.save_image(pictures[0], tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 100


def maps_of(found: Any) -> list[Tensor]:
    """The maps in a result, and all numbers beside them."""
    return [found] if isinstance(found, Tensor) else [each for each in vars(found).values() if isinstance(each, Tensor)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("name", EXPLAINERS)
def test_maps_of_16_bits_are_float32(name: str, count: int, dtype: torch.dtype) -> None:
    """pytorch-grad-cam #329, #493, #96. Every method, every number it gives, of one image and of none."""
    # saliency that only cuts something out is float32 in any case
    wide = torch.float64 if dtype == torch.float64 and name != "segment" else torch.float32
    found = maps_of(EXPLAINERS[name].function(made().to(dtype), images()[:count].to(dtype), 1))
    assert any(each.is_floating_point() for each in found)
    for each in found:
        assert each.isfinite().all()
        assert not each.is_floating_point() or each.dtype == wide


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_targets_of_16_bits_are_summed_in_float32(dtype: torch.dtype) -> None:
    """The sum of a channel's maps left the range of float16, and probabilities had two digits in bfloat16."""
    scaled = made()
    with torch.no_grad():
        scaled.body[0].weight.mul_(2000)
        scaled.head.weight.mul_(1e-3)
    x = images().to(dtype)
    assert fv.occlusion(scaled.to(dtype), x, fv.channel("body.2", 1), window=8).baseline.isfinite().all()
    assert fv.occlusion(scaled, x, fv.layer("body.2"), window=8).baseline.isfinite().all()
    shares = torch.stack([fv.occlusion(made().to(dtype), x, fv.class_probability(k)).baseline for k in range(5)])
    torch.testing.assert_close(shares.sum(0), torch.ones(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", EXPLAINERS)
def test_every_method_without_gradients(name: str, inside: Callable[[], AbstractContextManager[None]]) -> None:
    """MONAI #3035; pytorch-grad-cam #254, #473, #381: frozen parameters, images made inside."""
    expected = maps_of(EXPLAINERS[name].function(made(), images()[:1], 1))
    model = made().requires_grad_(False)
    with inside():
        found = maps_of(EXPLAINERS[name].function(model, images()[:1], 1))
    for each, other in zip(found, expected, strict=True):
        torch.testing.assert_close(each.clone(), other)


EVERY = {
    **{name: method.function for name, method in EXPLAINERS.items()},
    "maximize": lambda model, x, target: fv.maximize(model, target, size=16, steps=1),
    "invert": lambda model, x, target: fv.invert(model, x, "body.0", steps=1),
    "deep_dream": lambda model, x, target: fv.deep_dream(model, x, target, steps=1, octaves=1),
    "fool": lambda model, x, target: fv.fool(model, x, target, steps=1),
    "deletion": lambda model, x, target: fv.evaluation.deletion(model, x, torch.rand(len(x), 16, 16), target, step=0.5),
}


@pytest.mark.parametrize("name", EVERY)
def test_the_gradients_of_a_user_are_untouched(name: str) -> None:
    """pytorch-grad-cam's base class zeroes them with its own backward pass, and its CAMs drop images without target."""
    model, x = made(), torch.cat([images(), images()[:1]]) / 3  # a third: pictures between black and white
    x.requires_grad_()
    held = {}
    for key, tensor in (*model.named_parameters(), ("x", x)):
        held[key] = tensor.grad = torch.full_like(tensor, 3.0)
    EVERY[name](model, x, torch.tensor([1, 2, 0]))
    for key, tensor in (*model.named_parameters(), ("x", x)):
        assert tensor.grad is held[key]
        assert (tensor.grad == 3).all()
    if name not in ("maximize", "invert"):  # whose images come from targets, and which have none
        with pytest.raises(ValueError, match=r"target should .*3.*, got 2"):
            EVERY[name](model, x, torch.tensor([1, 2]))


DRAWS = {
    *("smooth_grad", "smooth_grad_squared", "var_grad", "gradient_shap"),
    *("shapley_sampling", "kernel_shap", "lime"),
}
"""Methods whose random numbers depend on the place in the batch."""


@pytest.mark.parametrize("name", [name for name in EXPLAINERS if name not in DRAWS])
def test_one_class_per_image_equals_the_loop(name: str) -> None:
    """torch-cam #79, for every method."""
    x = torch.cat([images(), images().flip(3)]).double()
    classes = torch.tensor([4, 0, 2, 2])
    model, method = made().double(), EXPLAINERS[name].function
    found = maps_of(method(model, x, classes))[0]
    alone = [maps_of(method(model, x[at : at + 1], int(k)))[0] for at, k in enumerate(classes)]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "maximize"])  # which takes no images
def test_loaders_are_refused_with_the_way(name: str) -> None:
    """captum #494, #645."""
    for many in (TensorDataset(images()), DataLoader(TensorDataset(images()))):
        words = rf"(x|content) should be a tensor, got {type(many).__name__}: loop over fastviz.batches\("
        with pytest.raises(TypeError, match=words):
            EVERY[name](made(), many, 1)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_twins_in_place_give_the_same_bits(name: str) -> None:
    """captum PR #837."""
    twin = made()
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    found, expected = (maps_of(EXPLAINERS[name].function(model, images(), 1)) for model in (twin, made()))
    for each, other in zip(found, expected, strict=True):
        assert torch.equal(each, other)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("method", [*METHODS, "maximize", "layers"])
def test_other_channels(method: str, channels: int) -> None:
    run = {**METHODS, **MORE}[method]
    assert run(made(Net, channels), images(channels)).isfinite().all()


class Flagged(Net):
    def forward(self, x: Tensor, flag: bool = True) -> Tensor:
        maps = self.body(x)
        if x.shape[-1] > 8:
            maps = maps * 2
        return self.head(maps.mean((2, 3))) * (1 if flag else -1)


class Looking(Net):
    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores if float(scores.sum()) > 1e9 else -scores


def test_control_flow() -> None:
    assert fv.activations(made(Flagged), images(), "body.2").shape == (2, 8, 8, 8)
    assert fv.occlusion(made(Flagged), images(), 1, window=8, stride=8, trace="always").stats["path"] == "incremental"
    dense = fv.occlusion(made(Looking), images(), 1, window=8, stride=8, trace="always")
    assert dense.stats["path"] == "dense"
    assert "looks at values" in dense.stats["reason"]
    torch.testing.assert_close(dense.scores, -fv.occlusion(made(), images(), 1, window=8, stride=8).scores)


class Unreturning(Net):
    def eval(self) -> None:  # type: ignore[override]
        super().eval()


class InPlace(Net):
    """A head that gives a tuple, and goes on writing to its parts."""

    def forward(self, x: Tensor) -> Any:
        maps = self.body(x)
        scores = self.head(maps.mean((2, 3)))
        scores[:, 0] += 1
        scores.mul_(2)
        return scores, [maps]


class OutOfPlace(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * 2 + torch.tensor([2.0, 0, 0, 0, 0])


@pytest.mark.parametrize("method", METHODS)
def test_heads_that_write_in_place(method: str) -> None:
    if method == "cam":
        pytest.skip("CAM is for networks that end in one linear layer")
    torch.testing.assert_close(METHODS[method](made(InPlace), images()), METHODS[method](made(OutOfPlace), images()))


@pytest.mark.parametrize("method", METHODS)
def test_wrapped_models(method: str) -> None:
    expected = METHODS[method](made(), images())
    torch.testing.assert_close(METHODS[method](nn.DataParallel(made()), images()), expected)
    plain = Unreturning()
    plain.load_state_dict(made().state_dict())
    torch.testing.assert_close(METHODS[method](plain, images()), expected)
    partly = made()
    partly.body = torch.compile(partly.body, backend="eager")  # type: ignore[assignment]
    torch.testing.assert_close(METHODS[method](partly, images()), expected)


def test_the_hook_of_a_user_stays_and_fires() -> None:
    model, seen = made(), []
    handle = model.body[1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    for method in (fv.guided_backprop, fv.saliency, fv.grad_cam):
        before = len(seen)
        method(model, images(), 1)
        assert len(seen) > before
    assert list(model.body[1]._forward_hooks) == [handle.id]


def test_a_network_of_timm_that_somebody_made() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model, x = timm.create_model("test_resnet", num_classes=7), torch.randn(1, 3, 64, 64)
    assert len(fv.layers(model, (64, 64))) > 20
    assert fv.grad_cam(model, x, 3).shape[0] == 1
    found = fv.occlusion(model, x, 3, window=32, stride=32, trace="always")
    assert found.stats["path"] == "incremental"
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.eval()(leaf)[0, 3], leaf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(fv.saliency(model, x, 3), gradient.abs().amax(1), rtol=1e-3, atol=1e-6)
