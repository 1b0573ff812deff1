"""Occlusion of signals and volumes compared with captum: ``python -m benchmarks.engine.incremental.axes
[--only NAME]``.

Three networks with random weights: torchvision's ``r3d_18`` on clips of 16x112x112, a 3-D ResNet-18 as in MONAI (first
convolution of 7x7x7 with stride 1, max pooling) on volumes of 96x96x96, and a 1-D ResNet-18 on 12 leads of 5,000
samples. Times are per window. fastviz runs over its grid, or over every n-th window of it if that would take minutes,
including its clean pass. captum runs with its best ``perturbations_per_eval`` over a grid of larger windows, because
each window costs it a whole pass whatever its size; its clean pass counts as one more window. The bound is the number
of multiply-adds of a whole pass divided by that of the average window.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import parse, parser, row, seconds, shares, write
from benchmarks.methods.attribution.occlusion import TARGET_CLASS, in_turns
from fastviz.engine import incremental
from fastviz.engine.incremental.window_grid import grid


@dataclass(frozen=True)
class Case:
    """A network and its windows.

    Attributes:
        make: creates the network.
        shape: shape of an input, [C, ...].
        window: size of the windows of fastviz's grid, which are adjacent or ``stride`` apart.
        stride: stride of that grid.
        every: only every n-th window of it is timed.
        captums: size of the windows of captum's grid, which are adjacent.
        target: the target ratio.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    every: int
    captums: tuple[int, ...]
    target: float


class Block(nn.Module):
    """The basic block of He et al. 2015, for any number of axes."""

    def __init__(self, axes: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        conv, norm = getattr(nn, f"Conv{axes}d"), getattr(nn, f"BatchNorm{axes}d")
        self.body = nn.Sequential(
            *(conv(inputs, outputs, 3, stride, 1, bias=False), norm(outputs), nn.ReLU(inplace=True)),
            *(conv(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Sequential() if same else nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """What the layers change, added to the input."""
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


def resnet18(axes: int, channels: int, first_stride: int) -> nn.Module:
    """A ResNet-18 for one or three axes, with 1,000 classes."""
    kinds = ("Conv", "BatchNorm", "MaxPool", "AdaptiveAvgPool")
    conv, norm, pool, mean = (getattr(nn, f"{kind}{axes}d") for kind in kinds)
    first = (conv(channels, 64, 7, first_stride, 3, bias=False), norm(64), nn.ReLU(inplace=True), pool(3, 2, 1))
    widths = [64, 64, 128, 256, 512]
    blocks = [
        Block(axes, widths[at], widths[at + 1], 2 if at else 1) if half == 0 else Block(axes, *[widths[at + 1]] * 2, 1)
        for at in range(4)
        for half in range(2)
    ]
    return nn.Sequential(*first, *blocks, mean(1), nn.Flatten(), nn.Linear(512, 1000))


def r3d_18() -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.video.r3d_18(weights=None)
    return model


CASES = {
    "1-D ResNet-18": Case(lambda: resnet18(1, 12, 2), (12, 5000), (100,), (50,), 1, (100,), 5),
    "r3d_18": Case(r3d_18, (3, 16, 112, 112), (4, 16, 16), (4, 16, 16), 8, (16, 56, 56), 2),
    "3-D ResNet-18": Case(lambda: resnet18(3, 1, 1), (1, 96, 96, 96), (16,) * 3, (16,) * 3, 7, (96, 96, 48), 3),
}


def captum_sweep(model: nn.Module, x: Tensor, window: tuple[int, ...], stride: tuple[int, ...], batch: int) -> Tensor:
    """captum's attribution [C, ...]."""
    from captum.attr import Occlusion

    with torch.inference_mode():
        return Occlusion(model).attribute(
            x, sliding_window_shapes=(x.shape[1], *window), strides=(x.shape[1], *stride),
            target=TARGET_CLASS, perturbations_per_eval=batch,
        )[0]  # fmt: skip


def best_batch(model: nn.Module, x: Tensor) -> int:
    """The batch size with the least time per input, limited by the memory."""
    most = 64 if x.dim() == 3 else max(1, min(4, (1 << 21) // x[0, 0].numel()))
    found: dict[int, float] = {}
    with torch.inference_mode():
        for batch in (each for each in (1, 2, 4, 8, 16, 32, 64) if each <= most):
            many = x.expand(batch, *x.shape[1:]).contiguous()
            if batch == 1:
                model(many)
            found[batch] = min(seconds(lambda x=many: model(x), x.device) for _ in range(2)) / batch
            if found[batch] > 1.3 * min(found.values()):
                break
    return min(found, key=lambda batch: found[batch])


def measured(name: str, device: torch.device, rounds: int, *, profile: bool) -> dict[str, Any]:
    """One row of the result file, in time per window."""
    case = CASES[name]
    torch.manual_seed(0)
    model, x = case.make().eval().to(device), torch.randn(1, *case.shape, device=device)
    windows = grid(tuple(x.shape[2:]), case.window, case.stride)
    boxes = windows.boxes[:: case.every]
    other_stride = case.stride if case.captums == case.window else case.captums
    theirs = grid(tuple(x.shape[2:]), case.captums, other_stride)
    batch = best_batch(model, x)

    def ours(of: Tensor = boxes) -> incremental.Sweep:
        return incremental.sweep(
            model, x, of, evaluate=lambda output, at: output[:, TARGET_CLASS], outputs=[TARGET_CLASS], trace="always"
        )

    begun = time.perf_counter()
    stats = ours().stats
    first = time.perf_counter() - begun
    expected: list[Tensor] = []

    def captums() -> None:
        expected.append(captum_sweep(model, x, case.captums, other_stride, batch))

    times = in_turns({"fastviz": ours, "captum, best batch": captums}, device, rounds)
    counts = {"fastviz": len(boxes), "captum, best batch": len(theirs.boxes) + 1}
    each = {way: {key: value / counts[way] for key, value in found.items()} for way, found in times.items()}
    with torch.no_grad():
        clean = model(x)[0, TARGET_CLASS]
    values = ours(theirs.boxes).values
    mine = theirs.spread((clean - values).reshape(theirs.shape))
    shape, window = ("x".join(map(str, size)) for size in (case.shape[1:], case.window))
    bound = stats["dense_flops"] / stats["flops"]
    label = f"{name}, {shape}, a window of {window}, bound {bound:.1f}x"
    result = row("occlusion of signals and volumes", label, each, {"captum, best batch": case.target})
    result["details"] = {
        "network": name,
        "windows": len(windows.boxes),
        "timed": counts,
        "captum_windows": case.captums,
        "captum_batch": batch,
        "error_of_range": float((mine - expected[0][0]).abs().max() / (expected[0].max() - expected[0].min())),
        "bound": bound,
        "dense_gflop": stats["dense_flops"] / 1e9,
        "first_call_seconds": first,
        "path": stats["path"],
        "batch_size": stats["batch_size"],
    }
    if profile:
        result["details"]["shares"] = shares(ours, device)
    print("  ", result["details"], flush=True)
    return result


def main() -> None:
    arguments = parser(__doc__, "axes")
    arguments.add_argument("--only", action="append", choices=list(CASES), help="network; may be repeated")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--profile", action="store_true", help="also show which operators take the time")
    options = parse(arguments, "signals-and-volumes")
    known = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = [measured(name, options.device, options.rounds, profile=options.profile) for name in options.only or CASES]
    done = {line["details"]["network"]: line for line in [*known, *rows]}
    rows = [done[name] for name in CASES if name in done]
    write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
