"""One network of timm with random weights against plain definitions: what is compared, and what came of it."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import fastviz as fv

GRID = 4
"""Windows along each side of an image."""

LIMIT = 1e-9
"""Of differences relative to the largest value; in float64 they are some 1e-15."""


@dataclass
class Row:
    """What came of one network: sizes, largest differences relative to the largest value, and words.

    ``rounding`` is what the order of sums alone changes in the scores, where that was looked at.
    """

    name: str
    family: str
    size: int
    saliency: float = 0.0
    guided: float = 0.0
    rectifiers: int = 0
    occlusion: float = 0.0
    rounding: float = 0.0
    path: str = ""
    reason: str = ""
    cam: str = ""
    touched: str = ""
    seconds: float = 0.0


def build(name: str, size: int, options: dict[str, Any]) -> nn.Module:
    """The network in float64, its weights such that every part of it counts.

    As they are drawn, scales of residual branches are often zero, and nothing in those branches would be tested.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **options).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1 or float(parameter.std()) < 1e-4:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


class _Guided(torch.autograd.Function):
    """The backward rule of guided backprop, as its paper has it: ``R · (R > 0) · (f > 0)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, upper: float) -> Tensor:
        output = x.clamp(0, upper)
        ctx.save_for_backward((x > 0) & (x < upper))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (active,) = ctx.saved_tensors
        return gradient * (gradient > 0) * active, None


class Rectifiers(TorchFunctionMode):
    """Calls of ReLU and ReLU6 with that rule; counts them. By the names of functions, not by what fastviz knows."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        upper = {"relu": float("inf"), "relu6": 6.0}.get(name)
        if upper is None and name == "hardtanh":
            low, high = (*args[1:], kwargs.get("min_val", -1.0), kwargs.get("max_val", 1.0))[:2]
            upper = high if low == 0 else None
        if upper is None:
            return func(*args, **kwargs)
        self.count += 1
        return _Guided.apply(args[0], upper)


class _PlainNorms(TorchFunctionMode):
    """Batch norms in evaluation mode as their formula.

    On the CPU torch 2.14 has a wrong gradient for some of them, of inputs in an unusual order in memory (LeViT, XCiT
    and others): it disagrees with differences of the model's own scores, with which that of the formula agrees.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # normalised weights have no statistics of their own
        if func is not torch.nn.functional.batch_norm or args[1] is None:
            return func(*args, **(kwargs or {}))
        names = ("input", "mean", "var", "weight", "bias", "training", "momentum", "eps")
        given = {"weight": None, "bias": None, "eps": 1e-5, **dict(zip(names, args, strict=False)), **(kwargs or {})}
        x, mean, var = given["input"], *args[1:3]
        shape = (1, -1, *[1] * (x.dim() - 2))
        found = (x - mean.view(shape)) / (var.view(shape) + given["eps"]).sqrt()
        found = found if given["weight"] is None else found * given["weight"].view(shape)
        return found if given["bias"] is None else found + given["bias"].view(shape)


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    with _PlainNorms():
        (found,) = torch.autograd.grad(model(leaf.clone())[:, 3].sum(), leaf)
    return found


def state(model: nn.Module) -> list[Any]:
    """All that a method could leave behind."""
    found: list[Any] = [(key, value.clone()) for key, value in model.state_dict().items()]
    for name, module in model.named_modules():
        hooks = [len(getattr(module, each)) for each in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
        found.append((name, type(module).__name__, module.training, tuple(hooks), tuple(vars(module))))
    found += [(name, each.requires_grad, each.grad is None) for name, each in model.named_parameters()]
    return found


def changed(before: list[Any], after: list[Any]) -> str:
    """What differs, in words."""
    if len(before) != len(after):
        return "another number of things"
    for old, new in zip(before, after, strict=True):
        same = torch.equal(old[1], new[1]) if isinstance(old[1], Tensor) else old == new
        if not same:
            return str(old[0])
    return ""


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def check(name: str, family: str, size: int, options: dict[str, Any]) -> Row:
    """Every comparison for one network; raises where a method stops that should not."""
    began = time.perf_counter()
    row = Row(name, family, size)
    model = build(name, size, options)
    channels = options.get("in_chans", 3)
    x = torch.randn(1, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row.saliency = apart(fv.saliency(model, x, 3), gradient(model, x).abs().amax(1))
        rectifiers = Rectifiers()
        with rectifiers:
            expected = gradient(model, x)
        row.guided, row.rectifiers = apart(fv.guided_backprop(model, x, 3), expected), rectifiers.count
        _sweep(row, model, x)
        row.cam = _cam(model, x)
    row.touched = changed(before, state(model))
    row.seconds = time.perf_counter() - began
    return row


def problems(row: Row) -> list[str]:
    """What should not be so."""
    limits = {"saliency": LIMIT, "guided": LIMIT, "occlusion": max(LIMIT, row.rounding)}
    found = [f"{what} {value:.1e}" for what, limit in limits.items() if (value := getattr(row, what)) > limit]
    found += [f"{row.touched} was changed"] if row.touched else []
    known = "layer should be named" in row.cam or "has none" in row.cam
    return found + ([] if row.cam[:1].isdecimal() or known else [f"Grad-CAM: {row.cam}"])


def _sweep(row: Row, model: nn.Module, x: Tensor) -> None:
    """Occlusion against a loop: one image with one window covered after another."""
    window = row.size // GRID
    found = fv.occlusion(model, x, 3, window=window, stride=window, trace="always")
    row.path, row.reason = found.stats["path"], str(found.stats["reason"] or found.stats.get("alone") or "")
    expected = _loop(model, x, window)
    assert float(expected.std()) > 0, "the windows should change the score"
    row.occlusion = apart(found.scores[:, :GRID, :GRID], expected)
    if row.occlusion > LIMIT:
        # How much the order of sums alone changes the scores of this network, whose weights are random.
        row.rounding = apart(_loop(model, x.contiguous(memory_format=torch.channels_last), window), expected)


def _loop(model: nn.Module, x: Tensor, window: int) -> Tensor:
    found = []
    with torch.no_grad():
        for top in range(0, GRID * window, window):
            for left in range(0, GRID * window, window):
                covered = x.clone()
                covered[:, :, top : top + window, left : left + window] = 0
                found.append(model(covered)[0, 3])
    return torch.stack(found).view(1, GRID, GRID)


def _cam(model: nn.Module, x: Tensor) -> str:
    """The size of the map at the layer that Grad-CAM takes by itself, or its sentence."""
    try:
        found = fv.grad_cam(model, x, list(range(10)))[0]
    except ValueError as error:
        return str(error)
    assert found.isfinite().all()
    assert float(found.min()) >= 0
    # Not for every class: with random weights all evidence at the layer may be against one.
    assert found.any(), "some class should have a map"
    return f"{found.shape[1]}x{found.shape[2]}"
