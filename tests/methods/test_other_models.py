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
    assert found.isfinite().all()
    exact = METHODS[method](made(), images())
    if method not in ("guided_backprop", "deconvnet", "guided_grad_cam"):  # rules of rectifiers turn at zero
        assert float((found - exact).abs().max()) < 0.1 * float(exact.abs().max())
    heat = found.abs() if found.dim() == 3 else found.abs().amax(1)
    pictures = fv.images.overlay(torch.rand(2, 3, 16, 16), heat / heat.amax())
    fv.images.save_image(pictures[0], tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EXPLAINERS)
def test_maps_have_the_dtype_of_the_images(name: str, dtype: torch.dtype) -> None:
    """Every method of the registry, finite; integrated gradients failed in the first layer's own backward pass."""
    x = images()[:1].to(dtype)
    made_ = EXPLAINERS[name].function(made().to(dtype), x, 1)
    found = made_ if isinstance(made_, Tensor) else made_.attribution
    assert found.isfinite().all()
    assert found.dtype == (torch.float32 if name == "segment" else dtype)  # a mask of 0 and 1


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
