"""ROAD compared with pytorch-grad-cam: ``python -m benchmarks.evaluation.road``.

Five percentiles, MoRF and LeRF, images of 224x224, SqueezeNet with random weights; smooth maps like those of a CAM, and
noisy maps like those of a gradient. Neither adds noise to the imputed pixels, so that the numbers are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

import fastviz as fv
from benchmarks.common import parse, parser, row, shares, side_by_side, write
from fastviz import evaluation

PERCENTILES = [10, 30, 50, 70, 90]
CLASS = 7


def measured(kind: str, device: torch.device, images: int, rounds: int, warm_up: int) -> dict[str, Any]:
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    model = fv.load_model("squeezenet1_0").to(device)
    rough = functional.interpolate(torch.randn(images, 3, 28, 28), size=224, mode="bicubic")
    x = (rough + 0.3 * torch.randn(images, 3, 224, 224)).to(device)
    maps = torch.rand(images, 1, 13, 13) if kind == "smooth" else torch.rand(images, 1, 224, 224)
    maps = functional.interpolate(maps, size=224, mode="bilinear")[:, 0].contiguous()
    theirs, targets = ROADCombined(PERCENTILES), [ClassifierOutputSoftmaxTarget(CLASS)] * images
    removed = [100 - percentile for percentile in PERCENTILES]
    here = maps.to(device)

    def ours() -> torch.Tensor:
        return evaluation.road(model, x, here, CLASS, removed=removed, noise=0, removal="threshold").combined

    calls = {"fastviz": ours, "pytorch-grad-cam": lambda: theirs(x, maps.numpy(), targets, model)}
    times = side_by_side(calls, device, rounds=rounds, least=0, warm_up=warm_up)
    found = row("ROAD", f"{images} images, 5 percentiles, {kind} maps", times, {"pytorch-grad-cam": 10.0})
    return {**found, "profile": shares(ours, device)}


def main() -> None:
    arguments = parser(__doc__, "evaluation-road")
    arguments.add_argument("--images", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--warm-up", type=int, default=1)
    arguments.add_argument("--only", choices=("smooth", "noisy"), help="one kind of maps")
    options = parse(arguments, "evaluation-road")
    common = (options.device, options.images, options.rounds, options.warm_up)
    rows = [measured(kind, *common) for kind in ("smooth", "noisy") if options.only in (None, kind)]
    write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
