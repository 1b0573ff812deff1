"""Approximate occlusion sweeps: ``python -m benchmarks.methods.attribution.approximate [--only NAME]``.

Networks with trained weights over photographs; for each setting the gain in time over the exact sweep and over captum
with its best ``perturbations_per_eval``, and how far its map is from the exact one (SSIM, largest error as a fraction
of the map's range, rank correlation). Windows are a fourteenth of the image's side, at a step of a quarter of that. An
hour on two cores, most of it for VGG-16.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import parse, parser, seconds, write
from benchmarks.methods.attribution.occlusion import best_batch, captum_sweep, grid

PHOTOGRAPHS = 20

SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {},
    **{f"growth cap {cap}": {"growth_cap": cap} for cap in (0.6, 0.4)},
    **{f"drill-down {fraction}": {"drill_down": fraction} for fraction in (0.5, 0.25, 0.1)},
    "growth cap 0.6, drill-down 0.25": {"growth_cap": 0.6, "drill_down": 0.25},
}
BFLOAT16: dict[str, dict[str, Any]] = {
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, drill-down 0.25": {"precision": "bfloat16", "drill_down": 0.25},
    "bfloat16, growth cap 0.6, drill-down 0.25": {"precision": "bfloat16", "growth_cap": 0.6, "drill_down": 0.25},
}
"""Where the processor multiplies bfloat16."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions are computed as such."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def vgg16_trunk(shared: Path) -> nn.Module:
    """The convolutions of a trained VGG-16; its outputs are the means of its last 512 channels."""
    import torchvision
    from safetensors.torch import load_file

    features = torchvision.models.vgg16().features
    weights = load_file(shared / "models" / "vgg16_trunk_hed.safetensors")
    features.load_state_dict({name.removeprefix("features."): each.float() for name, each in weights.items()})
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def trained(name: str, shared: Path) -> tuple[nn.Module, Tensor]:
    """A network with trained weights, and photographs as it takes them."""
    import fastviz as fv

    files = {
        "squeezenet1_0": "squeezenet1_0_imagenet.safetensors",
        "timm/tf_efficientnet_lite0": "efficientnet_lite0_imagenet.safetensors",
    }
    if name == "vgg16 trunk":
        model, prepared = vgg16_trunk(shared), fv.load_model("squeezenet1_0")
    else:
        weights = shared / "models" / files[name] if name in files else "DEFAULT"
        model = prepared = fv.load_model(name, weights=weights)
    paths = sorted((shared / "images").glob("*.jpg"))
    paths = paths[:: len(paths) // PHOTOGRAPHS][:PHOTOGRAPHS]
    return model, fv.load_images(paths, model=prepared)[0]


TRAINED = ("squeezenet1_0", "timm/tf_efficientnet_lite0", "demo", "vgg16 trunk")


def approximate(name: str, device: torch.device, shared: Path) -> list[dict[str, Any]]:
    """A line a setting, over photographs that take turns: gains in time, and how far the maps are off. The target is
    the predicted class, of the trunk the channel that is strongest."""
    from fastviz import occlusion

    model, images = (each.to(device) for each in trained(name, shared))
    window = max(4, images.shape[-1] // 14)
    step = window // 4
    settings = SETTINGS | (BFLOAT16 if multiplies_bfloat16(device) else {})
    windows, few = len(grid(images.shape[-1], window, step)), len(grid(images.shape[-1], window, window))
    batch = best_batch(model, images[:1])
    captum, taken = 0.0, dict.fromkeys(settings, 0.0)
    found: dict[str, list[dict[str, float]]] = {label: [] for label in settings}
    for options in settings.values():
        occlusion(model, images[:1], window=images.shape[-1], **options)  # the trace and the weights are ready
    for image in images.split(1):
        # captum takes the same time for each window
        captum += seconds(lambda image=image: captum_sweep(model, image, batch, window, window), device) / few * windows
        exact_map = torch.empty(0)
        for label, options in settings.items():
            made = occlusion(model, image, window=window, stride=step, **options)
            taken[label] += made.stats["seconds"]
            attribution = made.attribution[0].cpu()
            exact_map = attribution if label == "exact" else exact_map
            span = float(made.scores.max() - made.scores.min())
            off = made.stats.get("error", {}).get("mean", 0.0) / span
            found[label].append(compared(attribution, exact_map) | {"estimated_error": off})
    rows = []
    for label, each in found.items():
        line: dict[str, Any] = {
            "network": name,
            "setting": label,
            "photographs": len(images),
            "seconds_an_image": taken[label] / len(images),
            "gain_over_exact": taken["exact"] / taken[label],
            "gain_over_captum": captum / taken[label],
            **{key: statistics.mean(one[key] for one in each) for key in each[0]},
            **{f"worst_{key}": min(one[key] for one in each) for key in ("ssim", "rank_correlation")},
        }
        rows.append(line)
        print(line, flush=True)
    return rows


def compared(found: Tensor, expected: Tensor) -> dict[str, float]:
    """SSIM (windows of 11, Gaussian), largest error as a fraction of the range, rank correlation."""
    span = float(expected.max() - expected.min())
    return {
        "ssim": ssim((found - expected.min()) / span, (expected - expected.min()) / span),
        "largest_error": float((found - expected).abs().max()) / span,
        "rank_correlation": float(torch.corrcoef(torch.stack([_ranks(found), _ranks(expected)]))[0, 1]),
    }


def _ranks(values: Tensor) -> Tensor:
    flat = values.flatten().double()
    _, group, counts = torch.unique(flat, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[group]


def ssim(x: Tensor, y: Tensor) -> float:
    """Wang et al. 2004 for values of range 1: mean over windows that lie inside the picture."""
    place = torch.arange(11).double() - 5
    line = torch.exp(-(place**2) / (2 * 1.5**2))
    kernel = torch.outer(line, line)[None, None] / line.sum() ** 2

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(z[None, None].double(), kernel)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def main() -> None:
    arguments = parser(__doc__, "approximate/occlusion")
    arguments.add_argument("--only", action="append", choices=TRAINED, help="network; may be repeated")
    arguments.add_argument("--shared", type=Path, default=Path(__file__).parents[4] / "shared")
    options = parse(arguments, "approximate/occlusion")
    for name in options.only or TRAINED:
        kept = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
        kept = [line for line in kept if line["network"] != name]
        write(options.out, kept + approximate(name, options.device, options.shared), options.device)


if __name__ == "__main__":
    main()
