"""Pictures of sixteen objectives compared with lucent, one by one: ``python -m benchmarks.compat.lucent``.

Channels of a middle layer and class scores of SqueezeNet and ResNet-18 (random weights unless ``--weights`` names a
file), with lucent's defaults except for fewer steps: from the third on, every step costs the same. The older names of
kornia's functions that lucent uses are restored for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kornia
import torch
import torchvision
from lucent.optvis import render
from torch import nn

import fastviz as fv
from benchmarks.common import parse, parser, row, side_by_side, write
from fastviz.compat import lucent as ours

OBJECTIVES, STEPS = 16, 12
CASES = [("squeezenet1_0", "features_7_expand3x3"), ("squeezenet1_0", "labels"), ("resnet18", "layer3_1")]
QUIET: dict[str, Any] = {"progress": False, "thresholds": (STEPS,)}


def network(name: str, weights: Path | None) -> nn.Module:
    if name == "squeezenet1_0" and weights is not None:
        return fv.load_model(name, weights=weights)
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)().eval()
    return model


def main() -> None:
    for name in ("get_rotation_matrix2d", "warp_affine"):
        if not hasattr(kornia, name):
            setattr(kornia, name, getattr(kornia.geometry.transform, name))
    arguments = parser(__doc__, "lucent")
    arguments.add_argument("--weights", type=Path, help="a file with weights of SqueezeNet 1.0")
    arguments.add_argument("--only", choices=[layer for _, layer in CASES], help="the case of this layer")
    options = parse(arguments, "lucent")
    rows = []
    for name, layer in CASES:
        if options.only not in (None, layer):
            continue
        model = network(name, options.weights).to(options.device)
        wanted = [f"{layer}:{channel}" for channel in range(OBJECTIVES)]
        calls = {
            "fastviz": lambda: ours.render_vis_many(model, wanted, **QUIET),  # noqa: B023
            "lucent": lambda: [render.render_vis(model, each, show_image=False, **QUIET) for each in wanted],  # noqa: B023
            "one by one": lambda: [ours.render_vis(model, each, show_image=False, **QUIET) for each in wanted],  # noqa: B023
        }
        times = side_by_side(calls, options.device, rounds=2, least=0.0, warm_up=0)
        alone = times.pop("one by one")
        case = f"{name}, {layer}, {STEPS} steps"
        rows.append(row(f"render_vis of {OBJECTIVES} objectives", case, times, {"lucent": 4.0}))
        times = {"fastviz": alone, "lucent": times["lucent"]}
        rows.append(row(f"render_vis, {OBJECTIVES} times", case, times, {"lucent": 0.97}))
        write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
