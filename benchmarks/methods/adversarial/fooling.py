"""How little fools a network: ``python -m benchmarks.methods.adversarial.fooling --weights FILE [--photos FOLDER]
[--few]``.

Every photograph of the folder that the network gets right (``labels.csv`` there says what they show) is turned into 20
random classes by the L-BFGS box method and by sign steps (``--methods`` adds ``gradient``), with the picture rounded to
8 bits; noise into 20 classes; and a picture evolves until the network is sure of it. Printed and written: how often it
works, how long the changes are, how long it takes. ``--few`` takes 5 photographs, 3 classes each, and 5 classes for the
noise, and writes only where ``--out`` says so.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastviz as fv
from benchmarks.common import RESULTS, kind, machine, parser

CLASSES = 20
GOAL, NOISE_GOAL = 0.99, 0.996
ROOT = Path(__file__).parents[3]


def right_ones(model: nn.Module, folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """The photographs that the network gets right, their classes and names."""
    with (folder / "labels.csv").open(newline="") as stream:
        labels = {row["file"]: int(row["class_index"]) for row in csv.DictReader(stream)}
    x, names = fv.load_images([folder / name for name in labels], model=model)
    truth = torch.tensor([labels[name] for name in names])
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(16)]) == truth
    return x[right], truth[right], [name for name, fine in zip(names, right.tolist(), strict=True) if fine]


def other_classes(truth: Tensor, count: int, classes: int) -> Tensor:
    """For each photograph ``count`` different classes that it does not show, [N, count]."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([torch.randperm(classes - 1, generator=generator)[:count] for _ in truth])
    return drawn + (drawn >= truth[:, None])


def fooled(model: nn.Module, x: Tensor, aims: Tensor, method: str, batch: int) -> dict[str, Any]:
    """Numbers over all photographs and classes, and the photographs and classes that did not work."""
    started = time.perf_counter()
    parts = []
    for number, (image, row) in enumerate(zip(x[:, None], aims, strict=True), start=1):
        # A photograph's classes beside each other: memory is bounded.
        made = fv.fool(
            *(model, image.expand(aims.shape[1], -1, -1, -1), row),
            method=method,  # type: ignore[arg-type]
            goal=GOAL,
            quantize=True,
            batch_size=batch,
        )
        if made.interrupted:
            raise KeyboardInterrupt
        parts.append(made)
        print(f"\r{method} {number} of {len(x)} photographs", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 40, end="\r", file=sys.stderr)
    joined = {name: torch.stack([getattr(part, name) for part in parts]) for name in ("success", "l2", "linf", "psnr")}
    return {
        "method": method,
        "images": aims.numel(),
        "success": float(joined["success"].float().mean()),
        "missed": (~joined["success"]).nonzero().tolist(),
        "seconds_an_image": (time.perf_counter() - started) / aims.numel(),
        "l2_median": float(joined["l2"].median()),
        "linf_median": float(joined["linf"].median()),
        "psnr_median": float(joined["psnr"].median()),
        "psnr_least": float(joined["psnr"].min()),
        "l2": joined["l2"].tolist(),
    }


def main() -> None:
    arguments = parser(__doc__, "fooling")
    arguments.add_argument("--model", default="squeezenet1_0")
    arguments.add_argument("--weights", default="DEFAULT")
    arguments.add_argument("--photos", type=Path, default=ROOT.parent / "shared" / "images")
    arguments.add_argument("--few", action="store_true", help="5 photographs, 3 classes each")
    arguments.add_argument("--batch", type=int, default=5, help="images the network sees at once")
    arguments.add_argument("--methods", default="lbfgs,sign", help="with commas between: lbfgs, sign, gradient")
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = fv.load_model(options.model, weights=options.weights).to(options.device)
    x, truth, names = right_ones(model, options.photos)
    count = len(fv.class_names(model))
    if options.few:
        x, truth, names = x[::9][:5], truth[::9][:5], names[::9][:5]
    aims = other_classes(truth, 3 if options.few else CLASSES, count)
    rows = []
    for method in options.methods.split(","):
        found = fooled(model, x.to(options.device), aims.to(options.device), method, options.batch)
        rows.append(found)
        print(
            f"{method:9s} {found['success']:7.2%} of {found['images']}, median L2 {found['l2_median']:.3f}, "
            f"PSNR {found['psnr_median']:.1f} dB (least {found['psnr_least']:.1f}), "
            f"{found['seconds_an_image']:.2f} s an image",
            flush=True,
        )
    lengths = {row["method"]: torch.tensor(row["l2"]) for row in rows}
    if {"lbfgs", "sign"} <= lengths.keys():
        less = float((lengths["lbfgs"] < lengths["sign"]).float().mean())
        print(f"L-BFGS changes less than sign steps in {less:.2%} of the cases")
    started = time.perf_counter()
    classes = other_classes(truth[:1], 5 if options.few else CLASSES, count)[0].to(options.device)
    noise = fv.fool_from_noise(model, classes, goal=NOISE_GOAL, quantize=True, batch_size=options.batch)
    seconds = time.perf_counter() - started
    print(f"noise     {int(noise.success.sum())} of {len(classes)} classes at {NOISE_GOAL:.1%}, {seconds:.0f} s")
    started = time.perf_counter()
    made = fv.evolve(model, goal=NOISE_GOAL)
    evolved = time.perf_counter() - started
    name = fv.class_names(model)[int(made.target)]
    print(f"evolution {name} {float(made.probability):.2%} after {int(made.steps)} generations, {evolved:.0f} s")
    out = options.out or RESULTS / "fooling" / f"{options.model}-{kind(options.device)}.json"
    if options.few and options.out is None:
        return
    result = {
        "machine": machine(options.device),
        "photographs": names,
        "rows": rows,
        "noise": {"classes": len(classes), "success": int(noise.success.sum()), "seconds": seconds},
        "evolution": {"class": name, "probability": float(made.probability), "generations": int(made.steps),
                      "seconds": evolved},
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
