"""Whether images of a batch meet: every kind of call that may mix them, and those of usual networks, which do not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastviz as fv
from fastviz.execution.batches import Batches

torchvision = pytest.importorskip("torchvision")

Forward = Callable[[Any, Tensor], Any]


class Model(nn.Module):
    """Some modules, a parameter, a buffer, and what a function makes of them and the images."""

    def __init__(self, function: Forward, *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)
        self.token = nn.Parameter(torch.rand(1, 1, 8))
        self.register_buffer("rows", torch.arange(4.0).view(4, 1, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2)[:, :, :8]


def lowered(part: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return part(x).float()


def written(x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape)
    out[:, ::2], out[:, 1::2] = x[:, 1:2], x[:, :1]
    return out


def written_and_read_whole(x: Tensor) -> Tensor:
    kept = x.new_zeros(4, 3)
    flat = kept.view(-1)
    kept[:] = x[:, :, 0, 0]
    return x * flat.max()


def windows(x: Tensor, dim: int) -> Tensor:
    """Windows of 4x4 as their own rows, as in Swin."""
    cut = x.view(len(x), 3, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 3).softmax(dim)
    return cut.view(len(x), 2, 2, 4, 4, 3).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / x.max()


APART: dict[str, tuple[Any, ...]] = {
    "largest of an image": (lambda m, x: x / x.amax((1, 2, 3), keepdim=True),),
    "batch norm": (lambda m, x: m.parts[0](x), nn.BatchNorm2d(3)),
    "instance norm": (lambda m, x: m.parts[0](x), nn.InstanceNorm2d(3, affine=True)),
    "instance norm with statistics": (lambda m, x: m.parts[0](x), nn.InstanceNorm2d(3, track_running_stats=True)),
    "group norm": (lambda m, x: m.parts[0](x), nn.GroupNorm(3, 3)),
    "sort": (lambda m, x: x.sort(1)[0],),
    "top k": (lambda m, x: x.topk(2, 1)[0],),
    "linear": (lambda m, x: m.parts[0](x.flatten(1)), nn.Linear(192, 4)),
    "linear over tokens": (lambda m, x: m.parts[0](tokens(x)), nn.Linear(8, 4)),
    "class token": (lambda m, x: torch.cat([m.token.expand(len(x), -1, -1), tokens(x)], 1),),
    "repeated token": (lambda m, x: torch.cat([m.token.repeat(len(x), 1, 1), tokens(x)], 1),),
    "channels by index": (lambda m, x: x[:, [1, 0]],),
    "attention": (lambda m, x: m.parts[0](*[tokens(x)] * 3)[0], nn.MultiheadAttention(8, 2, batch_first=True)),
    "attention, tokens first": (
        lambda m, x: m.parts[0](*[tokens(x).transpose(0, 1)] * 3)[0].transpose(0, 1),
        nn.MultiheadAttention(8, 2),
    ),
    "encoder": (lambda m, x: m.parts[0](tokens(x)), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    "memory written to": (lambda m, x: written(x),),
    "einsum": (lambda m, x: torch.einsum("nchw,ck->nkhw", x, torch.ones(3, 5)),),
    "pixel unshuffle": (lambda m, x: F.pixel_unshuffle(x, 2),),
    "rot90": (lambda m, x: torch.rot90(x, 1, (2, 3)),),
    "local response norm": (lambda m, x: F.local_response_norm(x, 2),),
    "where": (lambda m, x: torch.where(x > 0.5, x, 0.1 * x),),
    "masked fill": (lambda m, x: x.masked_fill(x > 0.5, 0.0),),
    "autocast": (lambda m, x: lowered(m.parts[0], x), nn.Conv2d(3, 4, 3)),
    "dictionary": (lambda m, x: {"a": x.mean((2, 3)), "b": [x]},),
    "one number": (lambda m, x: x.mean((1, 2, 3)),),
    "windows": (lambda m, x: windows(x, 1),),
    "grid": (lambda m, x: F.grid_sample(x, F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(x.shape))),),
    "Fourier": (lambda m, x: torch.fft.rfft2(x).abs(),),
    "ECA": (lambda m, x: x * m.parts[0](x.mean((2, 3))[:, None]).view(len(x), -1, 1, 1), nn.Conv1d(1, 1, 3, padding=1)),
    "resized": (lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear"),),
    "no dropout": (lambda m, x: m.parts[0](x), nn.Dropout(0.5)),
    "constant": (lambda m, x: torch.zeros(len(x), 3),),
    "global constants": (lambda m, x: (x - MEAN) / 2,),
}  # fmt: skip
MEAN = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)

MIXED: dict[str, tuple[Any, ...]] = {
    "largest": (lambda m, x: x / x.max(),),
    "largest in a function of its own": (lambda m, x: Scale.apply(x),),
    "largest, detached": (lambda m, x: x / x.detach().abs().max(),),
    "largest through data": (lambda m, x: x / x.data.max(),),
    "mean image": (lambda m, x: x - x.mean(0, keepdim=True),),
    "standard deviation": (lambda m, x: x / x.std(),),
    "batch norm of the batch": (lambda m, x: m.parts[0](x), nn.BatchNorm2d(3, track_running_stats=False)),
    "sort": (lambda m, x: x.sort(0)[0],),
    "softmax": (lambda m, x: x.softmax(0),),
    "cumsum": (lambda m, x: x.cumsum(0),),
    "flip": (lambda m, x: x.flip(0),),
    "roll": (lambda m, x: x.roll(1, 0),),
    "roll of all values": (lambda m, x: x.roll(1),),
    "first image": (lambda m, x: x - x[0],),
    "place in the batch": (lambda m, x: x + torch.arange(float(len(x))).view(-1, 1, 1, 1),),
    "place in the batch, kept": (lambda m, x: x + m.rows[: len(x)],),
    "decision": (lambda m, x: x * 2 if x.mean() > 0.1 else x,),
    "item": (lambda m, x: x * x.sum().item(),),
    "tolist": (lambda m, x: x * max(x.flatten().tolist()),),
    "numpy": (lambda m, x: x * float(x.numpy().max()),),
    "through numpy": (lambda m, x: torch.from_numpy(x.numpy() / x.numpy().max()),),
    "dropout": (lambda m, x: F.dropout(x, 0.5, training=True),),
    "noise": (lambda m, x: x + torch.rand(3, 1, 1),),
    "Python's noise": (lambda m, x: x + random.random(),),
    "NumPy's noise": (lambda m, x: x + float(np.random.rand()),),
    "product with itself": (lambda m, x: x.flatten(1) @ x.flatten(1).T,),
    "distances": (lambda m, x: torch.cdist(x.flatten(1), x.flatten(1)),),
    "attention over the batch": (lambda m, x: m.parts[0](*[tokens(x)] * 3)[0], nn.MultiheadAttention(8, 2)),
    "windows": (lambda m, x: windows(x, 0),),
    "memory written to": (lambda m, x: written_and_read_whole(x),),
    "mean of chosen values": (lambda m, x: x * x[x > 0.5].mean(),),
    "count": (lambda m, x: x * (x > 0.5).sum(),),
    "Fourier": (lambda m, x: torch.fft.fft(x, dim=0).abs(),),
    "histogram": (lambda m, x: x * torch.histc(x)[0],),
    "channels first": (lambda m, x: x.mean((2, 3)).T,),
    "scalar": (lambda m, x: x.sum(),),
}  # fmt: skip


def batches_of(forward: tuple[Any, ...], grad: bool) -> tuple[int, Batches]:
    function, *parts = forward
    batches = Batches(Model(function, *parts).eval())
    with torch.set_grad_enabled(grad):
        return len(batches(batches.run_model, torch.rand(4, 3, 8, 8))), batches


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", APART)
def test_what_keeps_images_apart_runs_on_batches(name: str, grad: bool) -> None:
    passes, batches = batches_of(APART[name], grad)
    assert (passes, batches.reason) == (1, "")


@pytest.mark.parametrize("name", MIXED)
def test_what_may_mix_images_gets_one_at_a_time(name: str) -> None:
    passes, batches = batches_of(MIXED[name], False)
    assert passes == 4
    assert batches.reason


@pytest.mark.parametrize(
    "name",
    ["vit_b_32", "swin_t", "swin_v2_t", "mobilenet_v3_small", "convnext_tiny", "shufflenet_v2_x0_5", "googlenet"],
)
def test_usual_networks_run_on_batches(name: str) -> None:
    quick = {"init_weights": False} if name == "googlenet" else {}
    batches = Batches(torchvision.models.get_model(name, weights=None, **quick).eval())
    side = 224 if name == "vit_b_32" else 64
    with torch.no_grad():
        assert len(batches(batches.run_model, torch.rand(2, 3, side, side))) == 1, batches.reason


def test_a_scripted_part_is_not_trusted() -> None:
    batches = Batches(nn.Sequential(torch.jit.trace(nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8))))
    assert batches.reason == "'0' is scripted, so that its calls cannot be seen"
    assert batches.together(torch.rand(4, 3, 8, 8)) == 1


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = F.relu(self.conv((x - x.min()) / (x.max() - x.min())))
        return self.fc(maps.mean((2, 3)))


METHODS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "saliency": lambda m, x: fv.saliency(m, x, 1),
    "saliency in pairs": lambda m, x: fv.saliency(m, x, 1, batch_size=2),
    "predicted": fv.saliency,
    "several": lambda m, x: fv.input_gradient(m, x, [0, 1]),
    "smooth_grad": lambda m, x: fv.smooth_grad(m, x, 1, samples=3, noise=0.0),
    "guided_backprop": lambda m, x: fv.guided_backprop(m, x, 1),
    "grad_cam": lambda m, x: fv.grad_cam(m, x, 1, layer="conv"),
    "occlusion": lambda m, x: fv.occlusion(m, x, 1, window=4).scores,
    "occlusion in batches": lambda m, x: fv.occlusion(m, x, 1, window=4, batch_size=5).attribution,
    "occlusion of a unit": lambda m, x: fv.occlusion(m, x, fv.channel("conv", 1), window=4).scores,
    "activations": lambda m, x: fv.activations(m, x, "conv"),
    "embedding": lambda m, x: fv.embedding(m, x).vectors,
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_give_each_image_what_it_gets_alone(name: str) -> None:
    torch.manual_seed(0)
    model, x = (
        Mixing().double().eval(),
        torch.rand(3, 3, 12, 12, dtype=torch.float64) * torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1, 1),
    )
    found = METHODS[name](model, x)
    alone = torch.cat([METHODS[name](model, x[at : at + 1]) for at in range(3)])
    torch.testing.assert_close(found, alone)


def test_patches_of_a_model_that_mixes_are_those_of_each_image() -> None:
    torch.manual_seed(0)
    model, x = (
        Mixing().double().eval(),
        torch.rand(3, 3, 12, 12, dtype=torch.float64) * torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1, 1),
    )
    together, alone = (fv.patches(model, x, "conv", k=3, batch_size=size) for size in (3, 1))
    torch.testing.assert_close(together.values, alone.values)


def test_compiled_models_are_watched_as_python_code(recwarn: pytest.WarningsRecorder) -> None:
    """Compiled code makes calls of its own, which no watch sees, and compiling inside of a watch printed warnings."""

    class Scaled(nn.Module):
        def __init__(self, mixes: bool) -> None:
            super().__init__()
            self.conv, self.mixes = nn.Conv2d(3, 4, 3), mixes

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x / x.abs().max() if self.mixes else x).mean((2, 3))

    images = torch.rand(3, 3, 8, 8)
    for mixes in (False, True):
        batches = Batches(torch.compile(Scaled(mixes).eval(), backend="eager"))
        parts = batches(batches.run_model, images)
        assert len(parts) == (3 if mixes else 1)
        assert bool(batches.reason) == mixes
    assert not recwarn.list
