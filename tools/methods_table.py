"""Which methods support which networks and tasks: runs each once and writes the table in docs/reference/supported.md.

``python -m tools.methods_table`` takes a minute. The error messages of unsupported cases are listed below the table.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastviz as fv
from fastviz.methods.registry import EXPLAINERS, Method

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "supported.md"
BEGIN, END = "<!-- methods: begin (made by `python -m tools.methods_table`) -->", "<!-- methods: end -->"

# Options that make methods fast; whether they support a network does not depend on them.
FEW = {"samples": 4, "permutations": 1, "masks": 8, "segments": 4, "steps": 4}


def tasks() -> dict[str, tuple[nn.Module, torch.Tensor, Any]]:
    """Name → network, inputs, target."""
    import timm
    import torchvision

    def classifier(dims: int) -> nn.Module:
        convolution, pool = getattr(nn, f"Conv{dims}d"), getattr(nn, f"AdaptiveAvgPool{dims}d")
        channels = 3 if dims == 2 else 1
        return nn.Sequential(
            convolution(channels, 8, 3), nn.ReLU(), convolution(8, 8, 3), nn.ReLU(),
            pool(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip

    torch.manual_seed(0)
    pictures = torch.randn(1, 3, 64, 64)
    dense = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    )
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:48, 16:48] = True
    features = classifier(2)[:-1]
    found = {
        "classifier": (classifier(2), pictures, 1),
        "transformer": (timm.create_model("test_vit", img_size=64, num_classes=4), pictures, 1),
        "segmentation": (dense, pictures, fv.region_score(1, mask)),
        "similarity": (features, pictures, fv.similarity(torch.ones(8))),
        "signal": (classifier(1), torch.randn(1, 1, 64), 1),
        "volume": (classifier(3), torch.randn(1, 1, 8, 16, 16), 1),
    }
    return {name: (network.eval(), x, target) for name, (network, x, target) in found.items()}


def refusal(method: Method, network: nn.Module, x: torch.Tensor, target: Any) -> str:
    """Why the method does not support the case, or ``""``."""
    takes = inspect.signature(method.function).parameters
    options = {name: few for name, few in FEW.items() if name in takes}
    if "window" in takes:
        options["window"] = tuple(max(2, side // 2) for side in x.shape[2:])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method.function(network, x, target, **options)
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def table() -> str:
    networks = tasks()
    lines = [f"| method | {' | '.join(networks)} |", "| --- |" + " :---: |" * len(networks)]
    reasons: dict[str, int] = {}
    for method in EXPLAINERS.values():
        cells = []
        for network, x, target in networks.values():
            reason = refusal(method, network, x, target)
            if reason:
                number = reasons.setdefault(reason, len(reasons) + 1)
            cells.append(f"– ({number})" if reason else "yes")
        lines.append(f"| `{method.name}` | {' | '.join(cells)} |")
    told = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(["", *lines, "", *told, ""])


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
