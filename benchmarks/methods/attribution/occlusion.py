"""Occlusion sweeps compared with captum: ``python -m benchmarks.methods.attribution.occlusion [--only NAME]
[--approximate]``.

Exact: times per window, over grids of windows of 16 with stride 16. Each network can be run separately (this takes
minutes, most of all for VGG-16); the file keeps the results of the others. The alternatives are captum's ``Occlusion``
with its best ``perturbations_per_eval`` on the unchanged torchvision model, and on the model in its fastest dense form
(channels last, or compiled with frozen weights, whichever is faster). The results include the operations saved for a
window inside the image and on average, and the peak memory of each alternative.

Approximate: photographs with trained weights; for each setting the speed-up over the exact sweep and over captum, and
the error of its map (SSIM, largest error as a fraction of the map's range, rank correlation).
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import parse, parser, row, seconds, shares, write
from fastviz.engine import incremental

WINDOW = 16
STEP = 16
# network → targets: over tuned captum and over the fastest dense form on the CPU, and over the latter on a GPU
TARGETS = {
    "vgg16": (12, 8, 5),
    "squeezenet1_0": (11, 5, 3.5),
    "googlenet": (5, 2.7, 2.2),
    "alexnet": (4, 2.6, 2.2),
    "resnet50": (3.5, 2.1, 1.8),
    "resnet18": (3, 2.2, 2),
    "densenet121": (3, 2, 1.7),
    "inception_v3": (3, 1.75, 1.5),
    "mobilenet_v2": (0.97, 0.97, 0.97),
    "shufflenet_v2_x1_0": (0.97, 0.97, 0.97),
    "convnext_tiny": (0.97, 0.97, 0.97),
    "efficientnet_b0": (0.97, 0.97, 0.97),
    "mobilenet_v3_large": (0.97, 0.97, 0.97),
    "vit_b_16": (0.97, 0.97, 0.97),
    "swin_t": (0.97, 0.97, 0.97),
}
TARGET_CLASS = 7
PHOTOGRAPHS = 6


def network(name: str, device: torch.device) -> tuple[nn.Module, Tensor]:
    """A torchvision network with random weights, and an image of the right size."""
    import torchvision

    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **quick).eval().to(device)
    size = 299 if name == "inception_v3" else 224
    return model, torch.randn(1, 3, size, size, device=device)


def grid(size: int, window: int = WINDOW, step: int = STEP) -> Tensor:
    """Boxes [P, 4], as captum's ``Occlusion`` covers them."""
    starts = torch.arange(0, size - window + step, step)
    top, left = (each.reshape(-1) for each in torch.meshgrid(starts, starts, indexing="ij"))
    return torch.stack([top, left, (top + window).clamp(max=size), (left + window).clamp(max=size)], dim=1)


def captum_sweep(model: nn.Module, image: Tensor, batch: int, window: int = WINDOW, step: int = STEP) -> Tensor:
    """captum's attribution [C, H, W]."""
    from captum.attr import Occlusion

    channels = image.shape[1]
    with torch.inference_mode():
        return Occlusion(model).attribute(
            image,
            sliding_window_shapes=(channels, window, window),
            strides=(channels, step, step),
            target=TARGET_CLASS,
            perturbations_per_eval=batch,
        )[0]


def fastviz_sweep(model: nn.Module, image: Tensor, boxes: Tensor, **options: Any) -> incremental.Sweep:
    """Scores of one class under each box, like captum's sweep."""
    options.setdefault("trace", "always")
    return incremental.sweep(
        model, image, boxes, evaluate=lambda output, windows: output[:, TARGET_CLASS], outputs=[TARGET_CLASS], **options
    )


def best_batch(model: nn.Module, image: Tensor) -> int:
    """The batch size with the least time per image."""
    found: dict[int, float] = {}
    with torch.inference_mode():
        for batch in (4, 8, 16, 32, 64) if image.device.type == "cpu" else (32, 64, 128, 256):
            images = image.expand(batch, -1, -1, -1).contiguous()
            model(images)
            found[batch] = min(seconds(lambda x=images: model(x), image.device) for _ in range(3)) / batch
    return min(found, key=lambda batch: found[batch])


class ChannelsLast(nn.Module):
    """A model that runs in channels_last memory."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """The model's output."""
        out: Tensor = self.model(x.contiguous(memory_format=torch.channels_last))
        return out


def strongest_dense(model: nn.Module, image: Tensor) -> tuple[str, nn.Module, int]:
    """The fastest dense form, its name, and its batch size, which is the best one for channels last because every form
    compiles for one size."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    forms: dict[str, nn.Module] = {
        "channels last": ChannelsLast(model),
        "compiled, frozen": torch.compile(copy.deepcopy(model), dynamic=False),
        "compiled, frozen, channels last": torch.compile(ChannelsLast(model), dynamic=False),
    }
    batch = best_batch(forms["channels last"], image)
    found = {}
    for name, form in forms.items():
        images = image.expand(batch, -1, -1, -1).contiguous()
        try:
            with torch.inference_mode():
                form(images)
                form(images)
                found[name] = min(seconds(lambda f=form, x=images: f(x), image.device) for _ in range(3))
        except Exception as error:  # a form that does not compile is left out
            print(f"  {name}: {type(error).__name__}")
    name = min(found, key=lambda key: found[key])
    print(f"  strongest dense form: {name}", {key: f"{value / batch * 1000:.1f} ms" for key, value in found.items()})
    return name, forms[name], batch


def in_turns(calls: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """Like ``common.side_by_side``, for calls that take seconds: one warm-up, no repetition within a round."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, device) * 1000)
    summary = {}
    for name, values in times.items():
        lower, _, upper = statistics.quantiles(values, n=4)
        summary[name] = {"median_ms": statistics.median(values), "spread_ms": (upper - lower) / 2}
    return summary


def exact(name: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """One row of the exact table."""
    print(name, flush=True)
    model, image = network(name, device)
    boxes = grid(image.shape[-1])
    size = tuple(image.shape[-2:])
    inner = incremental.sweep(model, image, _centred(size), trace="always").stats
    batch = best_batch(model, image)
    form, dense, dense_batch = strongest_dense(model, image)
    calls = {
        "fastviz": lambda: fastviz_sweep(model, image, boxes),
        "tuned captum": lambda: captum_sweep(model, image, batch),
        "strongest dense": lambda: captum_sweep(dense, image, dense_batch),
    }
    expected = captum_sweep(model, image, batch)
    found = attribution(model, image, boxes)
    scores = float(expected.max() - expected.min())
    # The last layer of some networks is initialised with zeros, so that all scores are equal.
    error = float((found - expected[0]).abs().max()) / scores if scores else None
    times = in_turns(calls, device, rounds)
    stats = fastviz_sweep(model, image, boxes).stats
    captum_target, dense_target, gpu_target = TARGETS[name]
    targets = {"tuned captum": captum_target, "strongest dense": dense_target}
    if device.type == "cuda":
        targets = {"strongest dense": gpu_target}
    result = row("occlusion", f"{name}, {len(boxes)} windows", times, targets)
    result["details"] = {
        "network": name,
        "error_of_range": error,
        "captum_batch": batch,
        "dense_form": form,
        "dense_batch": dense_batch,
        "inner_bound": _ratio(inner["dense_flops"], inner["flops"]),
        "operations_saved": _ratio(stats["dense_flops"], stats["flops"]),
        "path": stats["path"],
        "reason": stats["reason"],
        "batch_size": stats["batch_size"],
        "peak_mb": peaks(name, device, batch),
        "profile": profile(model, image, boxes),
    }
    print("  ", result["details"], flush=True)
    return result


def profile(model: nn.Module, image: Tensor, boxes: Tensor) -> dict[str, Any]:
    """Where the time of a sweep goes: the fraction of each operator, and operations per second.

    ``gflops`` is the rate of the whole sweep, ``dense_gflops`` that of the unchanged model on a batch. If the two are
    close, the speed-up is as large as the saved operations allow.
    """
    begun = time.perf_counter()
    stats = fastviz_sweep(model, image, boxes).stats
    taken = time.perf_counter() - begun
    found: dict[str, Any] = {"shares": shares(lambda: fastviz_sweep(model, image, boxes), image.device)}
    if stats["flops"]:
        batch = image.expand(8, -1, -1, -1).contiguous()
        with torch.inference_mode():
            model(batch)
            dense = min(seconds(lambda: model(batch), image.device) for _ in range(3)) / len(batch)
        found["gflops"] = stats["flops"] * len(boxes) / taken / 1e9
        found["dense_gflops"] = stats["dense_flops"] / dense / 1e9
    return found


def _centred(size: tuple[int, ...]) -> Tensor:
    top, left = ((side - WINDOW) // 2 for side in size)
    return torch.tensor([[top, left, top + WINDOW, left + WINDOW]])


def _ratio(dense: float | None, work: float | None) -> float | None:
    return dense / work if dense and work else None


def attribution(model: nn.Module, image: Tensor, boxes: Tensor, **options: Any) -> Tensor:
    """[H, W]: captum's attribution, which is the same in each channel."""
    with torch.no_grad():
        clean = model(image)[0, TARGET_CLASS]
    return spread(clean - fastviz_sweep(model, image, boxes, **options).values, boxes, tuple(image.shape[-2:]))


def spread(fall: Tensor, boxes: Tensor, size: tuple[int, ...]) -> Tensor:
    """The mean drop ``fall`` [P] over the boxes that cover each pixel."""
    total, count = torch.zeros(size, device=fall.device), torch.zeros(size, device=fall.device)
    for value, (top, left, bottom, right) in zip(fall, boxes.tolist(), strict=True):
        total[top:bottom, left:right] += value
        count[top:bottom, left:right] += 1
    return total / count.clamp(min=1)


# ------------------------------------------------------------------------------------------------------------ memory


def peaks(name: str, device: torch.device, batch: int) -> dict[str, float]:
    """Peak memory of a sweep in MB beyond the loaded model, for each alternative in a separate process."""
    found = {}
    for way in ("fastviz", "captum"):
        command = [
            sys.executable,
            "-m",
            "benchmarks.methods.attribution.occlusion",
            "--peak",
            way,
            "--only",
            name,
            "--captum-batch",
            str(batch),
        ]
        done = subprocess.run([*command, "--device", str(device)], capture_output=True, text=True, check=True)
        found[way] = float(done.stdout.strip().splitlines()[-1])
    return found


def peak(way: str, name: str, device: torch.device, batch: int) -> float:
    model, image = network(name, device)
    boxes = grid(image.shape[-1])[: 3 * batch]
    with torch.no_grad():
        model(image)
    if way == "fastviz":
        fastviz_sweep(model, image, boxes[:1])  # the export ends before the measured sweep
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = float(torch.cuda.memory_allocated(device))
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak in Linux
        before = resident("VmRSS")
    if way == "fastviz":
        fastviz_sweep(model, image, boxes)
    else:
        with torch.inference_mode():
            images = image.expand(batch, -1, -1, -1).contiguous()
            model(images.clone())
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    return (resident("VmHWM") - before) / 1e6


def resident(what: str) -> float:
    """Resident memory of the process in bytes, now ("VmRSS") or at its peak ("VmHWM"), from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(what)))


# ------------------------------------------------------------------------------------------------------- approximate


SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {},
    "bfloat16": {"precision": "bfloat16"},
    **{f"growth cap {cap}": {"growth_cap": cap} for cap in (0.8, 0.6, 0.5, 0.4)},
    **{f"drill-down {fraction}": {"drill_down": fraction} for fraction in (0.5, 0.25, 0.1)},
    "growth cap 0.6, drill-down 0.25": {"growth_cap": 0.6, "drill_down": 0.25},
    "bfloat16, drill-down 0.25": {"precision": "bfloat16", "drill_down": 0.25},
    "bfloat16, growth cap 0.6, drill-down 0.25": {"precision": "bfloat16", "growth_cap": 0.6, "drill_down": 0.25},
}
OTHERS = ("vgg16", "resnet18", "inception_v3")
"""The speed of networks without trained weights, on noise; their quality is not measured."""


def approximate(device: torch.device, shared: Path, only: Sequence[str]) -> list[dict[str, Any]]:
    """The approximate modes: SqueezeNet with trained weights on photographs, and the speed of other networks."""
    rows = photographed(device, shared) if "squeezenet1_0" in only else []
    chosen = ("exact", "bfloat16", "growth cap 0.6, drill-down 0.25", "bfloat16, growth cap 0.6, drill-down 0.25")
    for name in OTHERS:
        if name in only:
            model, image = network(name, device)
            rows += settings_of(name, model, image, {key: SETTINGS[key] for key in chosen}, trained=False)
    return rows


def photographed(device: torch.device, shared: Path) -> list[dict[str, Any]]:
    """All settings, with their quality."""
    import fastviz

    model = fastviz.load_model("squeezenet1_0", weights=shared / "models" / "squeezenet1_0_imagenet.safetensors")
    paths = sorted((shared / "images").glob("*.jpg"))[:: max(1, 60 // PHOTOGRAPHS)][:PHOTOGRAPHS]
    images, _ = fastviz.load_images(paths, model=model)
    return settings_of("squeezenet1_0", model.to(device), images.to(device), SETTINGS, trained=True)


def settings_of(
    name: str, model: nn.Module, images: Tensor, settings: dict[str, dict[str, Any]], *, trained: bool
) -> list[dict[str, Any]]:
    """One row for each setting, over all images: speed-ups and, for ``trained`` weights, errors of the maps."""
    from fastviz import occlusion

    step = 4
    windows = len(grid(images.shape[-1], WINDOW, step))
    device, batch = images.device, best_batch(model, images[:1])
    few = len(grid(images.shape[-1]))  # captum takes the same time for every window
    captum = seconds(lambda: captum_sweep(model, images[:1], batch), device) / few * windows
    exact_maps: list[Tensor] = []
    exact_seconds = 0.0
    rows = []
    for label, options in settings.items():
        occlusion(model, images[:1], window=images.shape[-1], **options)  # so that export and weights are ready
        taken, quality, errors = 0.0, [], []
        for number in range(len(images)):
            found = occlusion(model, images[number : number + 1], window=WINDOW, stride=step, **options)
            taken += found.stats["seconds"]
            attribution = found.attribution[0].cpu()
            if label == "exact":
                exact_maps.append(attribution)
            if trained:
                quality.append(compared(attribution, exact_maps[number]))
                span = float(found.scores.max() - found.scores.min())
                errors.append(found.stats.get("error", {}).get("mean", 0.0) / span)
        exact_seconds = exact_seconds or taken
        line: dict[str, Any] = {
            "network": name,
            "setting": label,
            "seconds_an_image": taken / len(images),
            "gain_over_exact": exact_seconds / taken,
            "gain_over_captum": captum * len(images) / taken,
        }
        if trained:
            line |= {key: statistics.mean(one[key] for one in quality) for key in quality[0]}
            line |= {f"worst_{key}": min(one[key] for one in quality) for key in ("ssim", "rank_correlation")}
            line["estimated_error"] = statistics.mean(errors)
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
    """SSIM of Wang et al. 2004 for values of range 1: mean over windows inside the picture."""
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
    arguments = parser(__doc__, "occlusion")
    arguments.add_argument("--only", action="append", choices=list(TARGETS), help="network; may be repeated")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--approximate", action="store_true", help="measure the approximate modes, on photographs")
    arguments.add_argument("--shared", type=Path, default=Path(__file__).parents[4] / "shared")
    arguments.add_argument(
        "--peak", choices=["fastviz", "captum"], help="only print the peak memory of one alternative"
    )
    arguments.add_argument("--captum-batch", type=int, default=16)
    options = parse(arguments, "occlusion")
    if options.peak:
        print(peak(options.peak, options.only[0], options.device, options.captum_batch))
        return
    if options.approximate:
        # a separate folder, because the README's table has exact times
        place = options.out.parent / "approximate" / options.out.name
        only = options.only or ["squeezenet1_0", *OTHERS]
        kept = json.loads(place.read_text())["rows"] if place.exists() else []
        kept = [line for line in kept if line["network"] not in only]
        write(place, kept + approximate(options.device, options.shared, only), options.device)
        return
    known = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    for name in options.only or list(TARGETS):
        made = exact(name, options.device, options.rounds)
        known = [line for line in known if line["details"]["network"] != name] + [made]
        order = list(TARGETS)
        known.sort(key=lambda line: order.index(line["details"]["network"]))
        write(options.out, known, options.device)


if __name__ == "__main__":
    main()
