"""Methods with many forward passes, compared with captum and a plain loop:
``python -m benchmarks.methods.attribution.sampling``.

Integrated gradients, Shapley sampling, KernelSHAP, LIME and RISE. captum gets the best of a few batch sizes, fastviz
its defaults. captum's classes are also compared with ``fastviz.compat.captum``, with the same arguments. RISE is timed
with a tenth of its masks, because every mask takes the same time. ``--stopping`` measures how many masks the stopping
rule saves on photographs, and how close the maps are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from captum import attr
from torch import Tensor, nn
from torch.nn import functional

import fastviz as fv
from benchmarks.common import parse, parser, row, seconds, write
from benchmarks.compat.drop_in import in_turns
from benchmarks.methods.attribution.occlusion import network
from fastviz.compat import captum as compat
from fastviz.engine.masking.random_masks import random_masks
from fastviz.vectors.ranks import correlation, ranks

SEGMENTS, PERMUTATIONS, SAMPLES, MASKS, TIMED_MASKS = 50, 25, 200, 4000, 400
NEVER_SLOWER = 0.97


def best(call: Callable[[int], Any], device: torch.device, batches: tuple[int, ...] = (4, 8, 16, 32)) -> int:
    """The batch size with the least time per image."""
    found = {batch: min(seconds(lambda b=batch: call(b), device) for _ in range(2)) / batch for batch in batches}
    return min(found, key=lambda batch: found[batch])


def forwards(model: nn.Module, image: Tensor) -> Callable[[int], Any]:
    def call(batch: int) -> Any:
        with torch.no_grad():
            return model(image.expand(batch, -1, -1, -1).contiguous())

    return call


def gradients(model: nn.Module, image: Tensor) -> Callable[[int], Any]:
    return lambda batch: attr.Saliency(model).attribute(image.repeat(batch, 1, 1, 1), target=7)


def integrated(name: str, device: torch.device, rounds: int) -> list[Any]:
    model, image = network(name, device)
    images = torch.randn(8, *image.shape[1:], device=device)
    batch = best(gradients(model, image), device, (8, 16, 32))
    rival = f"captum, {batch} at once"
    times, results = in_turns(
        {
            "fastviz": lambda: fv.integrated_gradients(model, images, 7).attribution,
            rival: lambda: attr.IntegratedGradients(model).attribute(images, target=7, internal_batch_size=batch),
        },
        device,
        rounds,
    )
    found = row("integrated gradients", f"{name}, batch of 8, 50 steps", times, {rival: 1.3})
    span = results[rival].abs().max()
    found["details"] = {"error_of_largest": float((results["fastviz"] - results[rival]).abs().max() / span)}
    return [found]


def over_segments(name: str, device: torch.device, rounds: int) -> list[Any]:
    model, _ = network(name, device)
    photo = next((Path(fv.__file__).parent / "models" / "data" / "photos").glob("*.jpg"))
    image = functional.interpolate(fv.load_images([photo], model=fv.load_model("demo"))[0], size=(224, 224)).to(device)
    labels = fv.feature_ablation(model, image, 7, segments=SEGMENTS).segments
    batch = best(forwards(model, image), device)
    rival = f"captum, {batch} at once"
    mask, count = labels[None], int(labels.max()) + 1
    shared = {"target": 7, "feature_mask": mask, "perturbations_per_eval": batch}
    rows = []
    calls: list[tuple[str, str, float, dict[str, Any]]] = [
        ("Shapley sampling", f"{PERMUTATIONS} orders", 3.0, {
            "fastviz": lambda: fv.shapley_sampling(model, image, 7, segments=labels, permutations=PERMUTATIONS),
            rival: lambda: attr.ShapleyValueSampling(model).attribute(image, n_samples=PERMUTATIONS, **shared),
        }),
        ("KernelSHAP", f"{SAMPLES} samples", 1.5, {
            "fastviz": lambda: fv.kernel_shap(model, image, 7, segments=labels, samples=SAMPLES),
            rival: lambda: attr.KernelShap(model).attribute(image, n_samples=SAMPLES, **shared),
        }),
        ("LIME", f"{SAMPLES} samples", 1.5, {
            "fastviz": lambda: fv.lime(model, image, 7, segments=labels, samples=SAMPLES),
            rival: lambda: attr.Lime(model).attribute(image, n_samples=SAMPLES, **shared),
        }),
        ("captum KernelShap", f"{SAMPLES} samples", NEVER_SLOWER, {
            "fastviz": lambda: compat.KernelShap(model).attribute(image, n_samples=SAMPLES, **shared),
            rival: lambda: attr.KernelShap(model).attribute(image, n_samples=SAMPLES, **shared),
        }),
        ("captum Lime", f"{SAMPLES} samples", NEVER_SLOWER, {
            "fastviz": lambda: compat.Lime(model).attribute(image, n_samples=SAMPLES, **shared),
            rival: lambda: attr.Lime(model).attribute(image, n_samples=SAMPLES, **shared),
        }),
        ("captum ShapleyValueSampling", "4 orders", NEVER_SLOWER, {
            "fastviz": lambda: compat.ShapleyValueSampling(model).attribute(image, n_samples=4, **shared),
            rival: lambda: attr.ShapleyValueSampling(model).attribute(image, n_samples=4, **shared),
        }),
    ]  # fmt: skip
    for title, case, wanted, each in calls:
        times, _ = in_turns(each, device, rounds)
        rows.append(row(title, f"{name}, {count} superpixels, {case}", times, {rival: wanted}))
    return rows


def plain_rise(model: nn.Module, image: Tensor, masks: int, batch: int) -> Tensor:
    """RISE as a batched loop over given masks."""
    drawn = random_masks(masks, tuple(image.shape[2:]), 7, 0.5, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    every = drawn.of(torch.arange(masks)).to(image)
    total = torch.zeros(image.shape[2:], device=image.device)
    with torch.no_grad():
        for part in every.split(batch):
            score = model(image * part[:, None]).softmax(1)[:, 7]
            total += (score[:, None, None] * part).sum(0)
    return total / (masks * 0.5)


def rise(name: str, device: torch.device, rounds: int) -> list[Any]:
    model, image = network(name, device)
    batch = best(forwards(model, image), device)
    rival = f"plain loop, {batch} at once"
    times, _ = in_turns(
        {
            "fastviz": lambda: fv.rise(model, image, 7, masks=TIMED_MASKS),
            rival: lambda: plain_rise(model, image, TIMED_MASKS, batch),
        },
        device,
        rounds,
    )
    return [row("RISE", f"{name}, {TIMED_MASKS} of {MASKS} masks", times, {rival: 1.2})]


def stopping(folder: Path, count: int, stop: float) -> None:
    """How many masks the stopping rule needs on photographs, and how close its maps are."""
    model = fv.load_model("squeezenet1_0", weights=folder / "models" / "squeezenet1_0_imagenet.safetensors")
    step = max(1, 60 // count)
    images, _ = fv.load_images(sorted((folder / "images").glob("*.jpg"))[::step][:count], model=model)
    for image in images.split(1):
        begun = time.perf_counter()
        whole = fv.rise(model, image, masks=MASKS)
        half = time.perf_counter()
        early = fv.rise(model, image, masks=MASKS, stop=stop)
        end = time.perf_counter()
        near = correlation(*(ranks(each.attribution.flatten(1)) for each in (whole, early)))
        print(f"masks {early.stats['masks']}, agreement said {early.stats['agreement'][0]:.4f}, is {float(near):.4f}, "
              f"faster {(half - begun) / (end - half):.2f}x", flush=True)  # fmt: skip


def main() -> None:
    arguments = parser(__doc__, "sampling")
    works: dict[str, Callable[[torch.device, int], list[Any]]] = {
        "integrated": lambda device, rounds: integrated("squeezenet1_0", device, rounds),
        "integrated-resnet18": lambda device, rounds: integrated("resnet18", device, rounds),
        "segments": lambda device, rounds: over_segments("squeezenet1_0", device, rounds),
        "rise": lambda device, rounds: rise("resnet18", device, rounds),
    }
    arguments.add_argument("--only", action="append", choices=works, help="may be repeated")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument(
        "--stopping", type=Path, help="folder with models/ and images/: measure only the stopping rule"
    )
    arguments.add_argument("--stop", type=float, default=0.99)
    arguments.add_argument("--count", type=int, default=5)
    options = parse(arguments, "sampling")
    if options.stopping:
        stopping(options.stopping, options.count, options.stop)
        return
    rows: list[Any] = []
    for name in options.only or works:
        rows += works[name](options.device, options.rounds)
        write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
