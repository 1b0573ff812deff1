"""Deletion and insertion compared with torch-cam and a batched loop: ``python -m benchmarks.evaluation.curves``.

Pixels (``--steps`` steps of each curve) on SqueezeNet and ResNet-50, windows of 16 on SqueezeNet and VGG-16; networks
with random weights, maps of noise. The loop is a plain torch implementation: masks from the ranks, batches of
``--batch`` images (8 is fastest on a CPU: with 12 or more, the memory of the maps is returned to the system and
allocated again in each pass), no gradient; and the same loop with channels_last memory. Each pass of a loop costs the
same, and so does each step of torch-cam's: only every ``--every``-th is run, and the time is multiplied accordingly.
The file is written after each network, and keeps the results of those that are not measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastviz as fv
from benchmarks.common import parse, parser, row, side_by_side, write
from fastviz import evaluation

PIXELS, WINDOWS = ("squeezenet1_0", "resnet50"), ("squeezenet1_0", "vgg16")
WINDOW = 16
CLASS = 7


class GivenMaps:
    """An extractor for torch-cam's metrics that returns given maps."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *arguments: Any, **options: Any) -> list[Tensor]:
        """The given maps."""
        return [self.maps.clone()]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        """The given maps."""
        return cams[0]

    def _hooks_off(self) -> AbstractContextManager[None]:
        return nullcontext()


def torch_cam(model: nn.Module, x: Tensor, maps: Tensor, steps: int, batch: int) -> Callable[[], object] | None:
    """torch-cam's measure of both curves; None if it is not installed."""
    try:
        from torchcam.metrics import DeletionInsertionMetric
    except ImportError:
        print("torch-cam is not installed (pip install --no-deps torchcam==0.5.0): left out")
        return None

    def run() -> None:
        scores = partial(torch.softmax, dim=-1)
        metric = DeletionInsertionMetric(GivenMaps(model, maps), scores, steps=steps, batch_size=batch)
        metric.update(x, CLASS)

    return run


def loop(model: nn.Module, x: Tensor, step_of: Tensor, steps: int, batch: int, every: int) -> Callable[[], Tensor]:
    """Both curves in plain torch, every ``every``-th batch; ``step_of`` [N, H, W] is when each pixel changes."""

    @torch.no_grad()
    def run() -> Tensor:
        states = torch.arange(len(x) * (steps + 1), device=x.device)
        found = []
        for reveal in (False, True):
            for part in states.split(batch)[::every]:
                image, at = part // (steps + 1), part % (steps + 1)
                gone = (step_of[image] <= at[:, None, None]) != reveal
                changed = torch.where(gone[:, None], torch.zeros((), device=x.device), x[image])
                found.append(model(changed).softmax(1)[:, CLASS])
        return torch.cat(found)

    return run


def measured(
    name: str, device: torch.device, images: int, steps: int, batch: int, every: int, rounds: int, warm_up: int,
    window: int | None,
) -> Any:  # fmt: skip
    model = fv.load_model(name).to(device)
    x, maps = torch.randn(images, 3, 224, 224, device=device), torch.rand(images, 224, 224, device=device)
    if window is None:
        step = math.ceil(224 * 224 / steps)
        ranks = maps.flatten(1).argsort(1, descending=True).argsort(1).reshape(maps.shape)
        step_of, options = ranks // step + 1, {"step": step}
    else:
        steps = (224 // window) ** 2
        means = functional.avg_pool2d(maps[:, None], window).flatten(1)
        ranks = means.argsort(1, descending=True).argsort(1).reshape(images, 224 // window, 224 // window)
        step_of, options = ranks.repeat_interleave(window, 1).repeat_interleave(window, 2) + 1, {"regions": window}

    def ours() -> None:
        evaluation.deletion(model, x, maps, CLASS, substrate=0.0, **options)
        evaluation.insertion(model, x, maps, CLASS, substrate=0.0, **options)

    ordered = fv.load_model(name).to(device, memory_format=torch.channels_last)
    calls: dict[str, Callable[[], object]] = {
        "fastviz": ours,
        "batched loop": loop(model, x, step_of, steps, batch, every),
        "batched loop, channels_last": loop(
            ordered, x.contiguous(memory_format=torch.channels_last), step_of, steps, batch, every
        ),
    }
    targets = {"batched loop": 1.0, "batched loop, channels_last": 1.0}
    if window is None:
        rival = torch_cam(model, x, maps, math.ceil(steps / every), batch)
        if rival is not None:
            calls["torch-cam"], targets["torch-cam"] = rival, 5.0
    else:
        targets = {"batched loop": 3.0, "batched loop, channels_last": 3.0}
    times = side_by_side(calls, device, rounds=rounds, least=0, warm_up=warm_up)
    batches = math.ceil(images * (steps + 1) / batch)
    shares = dict.fromkeys(("batched loop", "batched loop, channels_last"), math.ceil(batches / every) / batches)
    shares["torch-cam"] = math.ceil(steps / every) / steps
    for rival in times.keys() & shares:
        times[rival] = {key: value / shares[rival] for key, value in times[rival].items()}
    kind = f"{steps} steps" if window is None else f"windows of {window}"
    found = row("deletion and insertion", f"{name}, {images} images, {kind}", times, targets)
    return found


def main() -> None:
    arguments = parser(__doc__, "evaluation-curves")
    arguments.add_argument("--images", type=int, default=16)
    arguments.add_argument("--steps", type=int, default=224)
    arguments.add_argument("--batch", type=int, default=8, help="images of the loop at once")
    arguments.add_argument("--every", type=int, default=1, help="which batches the loops run")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--warm-up", type=int, default=1)
    arguments.add_argument("--only", choices=("pixels", "windows"))
    arguments.add_argument("--networks", nargs="*", default=[*PIXELS, *WINDOWS])
    options = parse(arguments, "evaluation-curves")
    common = (options.device, options.images, options.steps, options.batch, options.every, options.rounds)
    known = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = {line["case"]: line for line in known}
    for window, names in ((None, PIXELS), (WINDOW, WINDOWS)):
        if options.only != ("windows" if window is None else "pixels"):
            for name in names:
                if name in options.networks:
                    line = measured(name, *common, options.warm_up, window)
                    rows[line["case"]] = line
                    write(options.out, list(rows.values()), options.device)


if __name__ == "__main__":
    main()
