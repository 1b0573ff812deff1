"""Models that keep the images of a batch apart, and models that may mix them, one for each kind of call."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Forward = Callable[[Any, Tensor], Any]


class Model(nn.Module):
    """Some modules, a parameter, a buffer, and what a function makes of them and the images."""

    def __init__(self, function: Forward, *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)
        self.token = nn.Parameter(torch.rand(1, 1, 8))
        self.register_buffer("rows", torch.arange(4.0).view(4, 1, 1, 1))
        self.weights, self.plain = [torch.rand(2, 3, 1, 1)], torch.rand(3, 1, 1)

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


def extension(function: Callable[[Tensor], Tensor]) -> Forward:
    """Calls that Python's way of calling torch does not show, as those of a C++ extension."""

    def forward(model: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            y = function(x)
        return F.relu(y)

    return forward


def kept_in(model: Any, x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        model.token.data[0, 0, 0] = x.max()
        model.rows.add_(x.max())
    return x * model.rows[0]


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
    "softmax of channels": (lambda m, x: F.softmax(x, dim=-3),),
    "roll of a map": (lambda m, x: torch.roll(x, (1, 2), dims=(-1, 2)),),
    "padded": (lambda m, x: F.pad(x, (1, 2, 0, 1), mode="reflect"),),
    "products of tokens": (lambda m, x: (tokens(x) @ tokens(x).transpose(-2, -1)).softmax(2),),
    "product with a constant": (lambda m, x: torch.matmul(x, torch.ones(8, 2)),),
    "no dropout": (lambda m, x: m.parts[0](x), nn.Dropout(0.5)),
    "constant": (lambda m, x: torch.zeros(len(x), 3),),
    "extension": (extension(lambda x: x * 2),),
    "extension in place": (extension(lambda x: x.clone().mul_(2)),),
    "weights in a list": (lambda m, x: F.conv2d(x, m.weights[0]),),
    "plain attribute": (lambda m, x: x + m.plain,),
    "tensor of numbers": (lambda m, x: x * torch.tensor([0.5]),),
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
    "softmax, dimension from behind": (lambda m, x: F.softmax(x, dim=-4),),
    "roll along the batch too": (lambda m, x: torch.roll(x, (1, 1), dims=(2, -4)),),
    "padded by an image": (lambda m, x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[: len(x)],),
    "image becomes channel": (lambda m, x: x + x.transpose(0, 1).mean(1)[None],),
    "products of images": (lambda m, x: (x.flatten(1)[None] @ x.flatten(1).t()[None])[0],),
    "product with the first": (lambda m, x: x @ x[:1],),
    "tensor of tensors": (lambda m, x: x * torch.tensor([x.max()]),),
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
    "extension": (extension(lambda x: x / x.max()),),
    "extension in place": (extension(lambda x: x.div_(x.max())),),
    "extension that writes to the model": (kept_in,),
    "weights of the images": (lambda m, x: F.conv2d(x, x[:1].mean((2, 3), keepdim=True)),),
    "written to what was there": (lambda m, x: x * m.rows.add_(x[:, :1, :1, :1])[0],),
    "batch norm with statistics of the images": (lambda m, x: F.batch_norm(x, x.mean((0, 2, 3)), torch.ones(3)),),
    "one tensor of values": (lambda m, x: x * torch.tensor([float(x.max())]),),
}  # fmt: skip
