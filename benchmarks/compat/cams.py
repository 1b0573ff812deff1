"""The CAM family compared with pytorch-grad-cam and torch-cam: ``python -m benchmarks.compat.cams``.

One photograph (or noise, if there is none), random weights, 224x224. Rows with many passes use few rounds, because the
other tools need half a minute each. Takes four minutes on two cores.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_grad_cam
import torch
import torchcam.methods
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

import fastviz as fv
from benchmarks.common import parse, parser, row, side_by_side, write
from fastviz.compat import grad_cam as ours
from fastviz.compat import torchcam as our_torchcam

PHOTOS = Path(__file__).parents[3] / "shared" / "images"
SIX = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMPlusPlus",
    "xgrad_cam": "XGradCAM",
    "layer_cam": "LayerCAM",
    "hires_cam": "HiResCAM",
    "element_wise_cam": "GradCAMElementWise",
}
ALONE = (*SIX.values(), "EigenCAM", "EigenGradCAM", "SegEigenCAM", "FEM", "RandomCAM", "FullGrad")


def quietly(call: Callable[[], Any]) -> Callable[[], Any]:
    """Suppress the tools' progress bars."""

    def run() -> Any:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return call()

    return run


def photograph(model: nn.Module) -> Tensor:
    found = sorted(PHOTOS.glob("*.jpg"))[:1]
    if not found:
        return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return fv.load_images(found, model=model)[0]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)().eval()
    return model


def ablation(rows: list[dict[str, Any]], device: torch.device) -> None:
    """One channel in eight, chosen by pytorch-grad-cam (its fast mode) for both."""
    model = network("resnet50").to(device)
    x, layers, targets = photograph(model).to(device), [model.layer4[-1]], [ClassifierOutputTarget(281)]
    options = {"batch_size": 32, "ratio_channels_to_ablate": 0.0625}

    def call(library: Any) -> Callable[[], Any]:
        return quietly(lambda: library.AblationCAM(model, layers, **options)(x, targets))

    times = side_by_side(
        {"fastviz": call(ours), "pytorch-grad-cam": call(pytorch_grad_cam)}, device, rounds=2, least=0.0, warm_up=0
    )
    reach = {"pytorch-grad-cam": 10.0}
    rows.append(row("Ablation-CAM, 1/8 of the channels", "resnet50, last layer", times, reach))


def score(rows: list[dict[str, Any]], device: torch.device) -> None:
    model = network("resnet18").to(device)
    x, targets = photograph(model).to(device), [ClassifierOutputTarget(281)]

    def by_torchcam(library: Any) -> Any:
        with library.ScoreCAM(model, "layer4") as cam:
            with torch.no_grad():
                model(x)
            return cam(281)

    calls = {
        "fastviz": quietly(lambda: ours.ScoreCAM(model, [model.layer4])(x, targets)),
        "pytorch-grad-cam": quietly(lambda: pytorch_grad_cam.ScoreCAM(model, [model.layer4])(x, targets)),
        "torch-cam": quietly(lambda: by_torchcam(torchcam.methods)),
        "the drop-in for torch-cam": quietly(lambda: by_torchcam(our_torchcam)),
    }
    times = side_by_side(calls, device, rounds=2, least=0.0, warm_up=0)
    drop_in = times.pop("the drop-in for torch-cam")
    rows.append(row("Score-CAM", "resnet18, last layer", times, {"pytorch-grad-cam": 2.0, "torch-cam": 2.0}))
    times = {"fastviz": drop_in, "torch-cam": times["torch-cam"]}
    rows.append(row("torch-cam ScoreCAM", "resnet18, last layer", times, {"torch-cam": 2.0}))


def gradients(rows: list[dict[str, Any]], device: torch.device) -> None:
    model = network("resnet18").to(device)
    x, layers, targets = photograph(model).to(device), [model.layer4], [ClassifierOutputTarget(281)]

    def six() -> Any:
        found = fv.cams(model, x, 281, methods=list(SIX), layers=["layer4"], size=(224, 224))
        return [fv.images.tensors.normalize(maps["layer4"]) for maps in found.values()]

    calls = {
        "fastviz": six,
        "pytorch-grad-cam": quietly(
            lambda: [getattr(pytorch_grad_cam, name)(model, layers)(x, targets) for name in SIX.values()]
        ),
    }
    times = side_by_side(calls, device, rounds=4, least=0.0, warm_up=1)
    rows.append(row("six gradient CAMs of one image", "resnet18, last layer", times, {"pytorch-grad-cam": 5.0}))
    for name in ALONE:

        def call(library: Any, name: str = name) -> Callable[[], Any]:
            return quietly(lambda: getattr(library, name)(model, layers)(x, targets))

        times = side_by_side(
            {"fastviz": call(ours), "as it is": call(pytorch_grad_cam)}, device, rounds=4, least=0.0, warm_up=1
        )
        rows.append(row(f"pytorch-grad-cam {name}", "resnet18, one image", times, {"as it is": 0.97}))


def main() -> None:
    parts = {each.__name__: each for each in (gradients, score, ablation)}
    arguments = parser(__doc__, "cams")
    arguments.add_argument("--only", action="append", choices=parts, help="may be repeated")
    options = parse(arguments, "cams")
    rows: list[dict[str, Any]] = []
    # numpy's threads wait busily after a decomposition and take a core from whatever comes next: one is best for both.
    with threadpool_limits({"openblas": 1}):
        for name in options.only or parts:
            parts[name](rows, options.device)
    write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
