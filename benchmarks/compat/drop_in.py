"""A script for other tools with and without ``fastviz.accelerate``: ``python -m benchmarks.compat.drop_in``.

The script below is executed twice, once unchanged and once under ``fastviz.accelerate``, and both alternate. Occlusion
runs with captum's default of one window at a time, and with its best ``perturbations_per_eval``; ``fastviz`` gets the
default. The table in docs/compat.md is rewritten at the end. Takes eight minutes on two cores, five of them for
captum's sweeps over VGG-16, which run three times instead of five.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastviz
from benchmarks.common import RESULTS, parse, parser, row, seconds, side_by_side, write
from benchmarks.methods.attribution.occlusion import network
from benchmarks.readme import lines_of

SCRIPT = """
from captum.attr import GuidedBackprop, LayerGradCam, Occlusion, Saliency
from kornia.losses import total_variation as kornias
from pytorch_grad_cam import GradCAM
from torchmetrics.functional.image import total_variation as torchmetrics_own


def occlusion(model, image, per_eval=1):
    return Occlusion(model).attribute(
        image, sliding_window_shapes=(3, 16, 16), strides=(3, 16, 16), target=7, perturbations_per_eval=per_eval
    )


def saliency(model, images):
    return Saliency(model).attribute(images, target=7)


def guided_backprop(model, images):
    return GuidedBackprop(model).attribute(images, target=7)


def layer_grad_cam(model, images, layer):
    return LayerGradCam(model, layer).attribute(images, target=7)


def grad_cam(model, images, layer):
    with GradCAM(model, [layer]) as cam:
        return cam(images, None)


def kornia_total_variation(images):
    return kornias(images).sum().backward()


def torchmetrics_total_variation(images):
    return torchmetrics_own(images).backward()
"""

# network → target for occlusion, the layer for Grad-CAM, batch size for gradients, number of sweeps
NETWORKS = {
    "squeezenet1_0": (11, "features.12", 8, 5),
    "resnet18": (3, "layer4", 8, 5),
    "vgg16": (12, "features.29", 2, 3),
}
NEVER_SLOWER = 0.97
LOSS_BATCH = 8

PAGE = Path(__file__).parents[2] / "docs" / "compat.md"
BEGIN, END = "<!-- results: begin (made by `python -m benchmarks.compat.drop_in`) -->", "<!-- results: end -->"


def script() -> dict[str, Any]:
    """The script's functions, with its imports as they resolve now."""
    names: dict[str, Any] = {}
    exec(compile(SCRIPT, "script", "exec"), names)
    return names


def best_batch(model: nn.Module, image: Tensor) -> int:
    """The fastest of a few batch sizes for captum."""
    found = {}
    with torch.no_grad():
        for batch in (4, 8, 16) if image.device.type == "cpu" else (32, 64, 128, 256):
            images = image.expand(batch, -1, -1, -1).contiguous()
            model(images)
            found[batch] = min(seconds(lambda x=images: model(x), image.device) for _ in range(2)) / batch
    return min(found, key=lambda batch: found[batch])


def in_turns(
    calls: dict[str, Any], device: torch.device, rounds: int
) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """Times like those of ``side_by_side``, and the last results. No warm-up: each call runs a model many times."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(lambda c=call, n=name: results.update({n: c()}), device) * 1000)
    summary = {}
    for name, values in times.items():
        lower, _, upper = statistics.quantiles(values, n=4)
        summary[name] = {"median_ms": statistics.median(values), "spread_ms": (upper - lower) / 2}
    return summary, results


def of_network(name: str, plain: dict[str, Any], fast: dict[str, Any], device: torch.device, rounds: int) -> list[Any]:
    wanted, layer_name, size, turns = NETWORKS[name]
    model, image = network(name, device)
    images = torch.randn(size, *image.shape[1:], device=device)
    begun = time.perf_counter()
    fast["occlusion"](model, image)
    first = time.perf_counter() - begun
    batch = best_batch(model, image)
    best = f"captum, {batch} at once"
    times, results = in_turns(
        {
            "fastviz": lambda: fast["occlusion"](model, image),
            "captum": lambda: plain["occlusion"](model, image),
            best: lambda: plain["occlusion"](model, image, batch),
        },
        device,
        min(rounds, turns),
    )
    rows = [row("captum Occlusion", f"{name}, 196 windows", times, {"captum": wanted, best: wanted})]
    span = results["captum"].max() - results["captum"].min()
    error = float((results["fastviz"] - results["captum"]).abs().max() / span)
    rows[0]["details"] = {"first_call_seconds": first, "error_of_range": error}
    layer = model.get_submodule(layer_name)
    for title, function, arguments in (
        ("captum Saliency", "saliency", (images,)),
        ("captum GuidedBackprop", "guided_backprop", (images,)),
        ("captum LayerGradCam", "layer_grad_cam", (images, layer)),
        ("pytorch-grad-cam GradCAM", "grad_cam", (images, layer)),
    ):
        # pytorch-grad-cam leaves gradients on the parameters
        model.zero_grad()
        times = side_by_side(calls(plain, fast, function, (model, *arguments)), device, rounds=rounds, warm_up=1)
        rows.append(row(title, f"{name}, batch of {size}", times, {"as it is": NEVER_SLOWER}))
    return rows


def calls(plain: dict[str, Any], fast: dict[str, Any], function: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
    return {"fastviz": lambda: fast[function](*arguments), "as it is": lambda: plain[function](*arguments)}


def of_losses(plain: dict[str, Any], fast: dict[str, Any], device: torch.device, rounds: int) -> list[Any]:
    rows = []
    for title, function in (
        ("kornia total_variation", "kornia_total_variation"),
        ("torchmetrics total_variation", "torchmetrics_total_variation"),
    ):
        images = torch.rand(LOSS_BATCH, 3, 224, 224, device=device, requires_grad=True)
        times = side_by_side(calls(plain, fast, function, (images,)), device, rounds=rounds + 4)
        rows.append(row(title, f"{LOSS_BATCH}x3x224x224, with gradient", times, {"as it is": NEVER_SLOWER}))
    return rows


def write_page(path: Path) -> None:
    """Write the table of the results into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join(["", *lines_of(json.loads(path.read_text()))])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
    print(f"wrote {PAGE}")


def main() -> None:
    arguments = parser(__doc__, "compat")
    names = [*NETWORKS, "losses"]
    arguments.add_argument("--only", action="append", choices=names, help="may be repeated; the file keeps the others")
    arguments.add_argument("--rounds", type=int, default=5)
    options = parse(arguments, "compat")
    plain = script()
    with fastviz.accelerate("captum", "grad_cam", "kornia", "torchmetrics", quiet=True):
        fast = script()
    rows: list[Any] = []
    for name in options.only or names:
        print(name, flush=True)
        if name == "losses":
            rows += of_losses(plain, fast, options.device, options.rounds)
        else:
            rows += of_network(name, plain, fast, options.device, options.rounds)
    if options.only and options.out.exists():
        new = {(each["name"], each["case"]) for each in rows}
        before = json.loads(options.out.read_text())["rows"]
        rows = [each for each in before if (each["name"], each["case"]) not in new] + rows
    write(options.out, rows, options.device)
    if options.out.parent == RESULTS:
        write_page(options.out)


if __name__ == "__main__":
    main()
