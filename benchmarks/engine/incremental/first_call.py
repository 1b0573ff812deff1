"""First and later calls of ``occlusion`` compared with a plain loop: ``python -m
benchmarks.engine.incremental.first_call [--only NAME]``.

Each network and size has one grid of 6x6 windows. The plain loop copies the image, covers a window in each copy and
runs batches of eight. Each first call gets a new network, and its time includes deciding, tracing and planning
("traced": calls with tracing forced). Medians of interleaved rounds. timm's networks are measured if timm is installed.
Ratios below 0.97 are marked. The file keeps the results of networks that are not measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import fastviz as fv
from benchmarks.common import parse, parser, seconds, write

SIZES = (64, 96, 128, 224)
TORCHVISION = (
    *("resnet18", "resnet50", "vgg11_bn", "vgg16", "squeezenet1_0", "mobilenet_v2", "mobilenet_v3_small"),
    *("efficientnet_b0", "densenet121", "shufflenet_v2_x0_5", "convnext_tiny", "swin_t"),
)
TIMM = ("selecsls42", "repvgg_a0", "resnetv2_50", "regnetx_002", "hrnet_w18_small", "dla34", "ese_vovnet19b_dw")
BATCH = 8
ROWS = 6
LEAST = 0.97


def network(name: str) -> nn.Module:
    """A network with random weights, from torchvision, or from timm if the name begins with ``timm/``."""
    torch.manual_seed(0)
    if name.startswith("timm/"):
        import timm

        found: nn.Module = timm.create_model(name.removeprefix("timm/"), pretrained=False)
    else:
        import torchvision

        found = torchvision.models.get_model(name, weights=None)
    return found.eval()


def plain(model: nn.Module, image: Tensor, side: int, step: int) -> Tensor:
    """The score of class 1 under each window, as one would write it by hand."""
    starts = range(0, step * ROWS, step)
    corners = [(top, left) for top in starts for left in starts]
    scores = []
    with torch.no_grad():
        model(image)
        for first in range(0, len(corners), BATCH):
            part = corners[first : first + BATCH]
            copies = image.repeat(len(part), 1, 1, 1)
            for copy, (top, left) in zip(copies, part, strict=True):
                copy[:, top : top + side, left : left + side] = 0
            scores.append(model(copies)[:, 1])
    return torch.cat(scores)


def measured(name: str, size: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """One row of the result; the loop and the sweeps alternate, so that a slow phase affects all of them."""
    step = size // (ROWS + 1)
    side = size - step * (ROWS - 1)
    image = torch.randn(1, 3, size, size, device=device)
    model = network(name).to(device)
    used, traced = copy.deepcopy(model), copy.deepcopy(model)
    plain(model, image, side, step)  # libraries select their algorithms

    def sweep(of: nn.Module, trace: str = "auto") -> str:
        found = fv.occlusion(of, image, 1, window=side, stride=step, trace=trace)
        return str(found.stats["path"])

    sweep(used), sweep(traced, "always")
    times: dict[str, list[float]] = {"plain": [], "first": [], "later": [], "traced": []}
    for _ in range(rounds):
        new = copy.deepcopy(model)
        calls = {
            "plain": lambda: plain(model, image, side, step),
            "first": lambda new=new: sweep(new),
            "later": lambda: sweep(used),
            "traced": lambda: sweep(traced),
        }
        for key, call in calls.items():
            times[key].append(seconds(call, device))
    loop, first, later, prepared = (statistics.median(each) for each in times.values())
    return {
        "network": name,
        "size": size,
        "plain_ms": loop * 1e3,
        "first": loop / first,
        "later": loop / later,
        "traced": loop / prepared,
        "first_path": sweep(copy.deepcopy(model)),
        "later_path": sweep(used),
    }


def options() -> argparse.Namespace:
    """The command line."""
    arguments = parser(__doc__, "first-call")
    arguments.add_argument("--only", action="append", help="a network, for example vgg11_bn or timm/repvgg_a0")
    arguments.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments.add_argument("--rounds", type=int, default=5)
    return parse(arguments, "first-call")


def main() -> None:
    """Measure, print a line for each, and write the result file."""
    given = options()
    names = given.only or [*TORCHVISION, *(f"timm/{name}" for name in TIMM if find_spec("timm"))]
    known = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    rows = {(line["network"], line["size"]): line for line in known}
    for name in names:
        for size in given.sizes:
            line = measured(name, size, given.rounds, given.device)
            rows[name, size] = line
            gains = {key: line[key] for key in ("first", "later", "traced")}
            low = " BELOW" if min(line["first"], line["later"]) < LEAST else ""
            words = ", ".join(f"{key} {gain:.2f}x" for key, gain in gains.items())
            print(f"{name} {size}: loop {line['plain_ms']:.0f} ms; {words} ({line['first_path']}, "
                  f"{line['later_path']}){low}", flush=True)  # fmt: skip
    write(given.out, list(rows.values()), given.device)


if __name__ == "__main__":
    main()
