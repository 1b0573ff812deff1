"""Occlusion sweeps compared with captum: ``python -m benchmarks.methods.attribution.occlusion [--only NAME]``.

Times per window, over grids of windows of 16 with stride 16. Each network can be run separately (this takes minutes,
most of all for VGG-16); the file keeps the results of the others. The alternatives are captum's ``Occlusion`` with its
best ``perturbations_per_eval`` on the unchanged torchvision model, and on the model in its fastest dense form (channels
last, or compiled with frozen weights, whichever is faster). The results include the operations saved for a window
inside the image and on average, and the peak memory of each alternative.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
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
        lower, _, upper = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
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


def main() -> None:
    arguments = parser(__doc__, "occlusion")
    arguments.add_argument("--only", action="append", choices=list(TARGETS), help="network; may be repeated")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument(
        "--peak", choices=["fastviz", "captum"], help="only print the peak memory of one alternative"
    )
    arguments.add_argument("--captum-batch", type=int, default=16)
    options = parse(arguments, "occlusion")
    if options.peak:
        print(peak(options.peak, options.only[0], options.device, options.captum_batch))
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
