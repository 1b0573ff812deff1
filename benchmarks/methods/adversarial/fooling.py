"""Success, size and time of fooling images: ``python -m benchmarks.methods.adversarial.fooling --weights FILE
[--photos FOLDER] [--few]``.

Every photograph in the folder that the network classifies correctly (the true classes are in ``labels.csv``) is changed
into 20 random classes by the L-BFGS box method and by sign steps (``--methods`` adds ``gradient``), with the picture
rounded to 8 bits; noise is changed into 20 classes; and pictures are evolved until the network is confident. Prints and
writes the success rate, the size of the changes and the time. ``--few`` uses 5 photographs with 3 classes each and 5
classes for the noise, and writes only if ``--out`` is given.
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
    """The photographs that the network classifies correctly, with their classes and names."""
    with (folder / "labels.csv").open(newline="") as stream:
        labels = {row["file"]: int(row["class_index"]) for row in csv.DictReader(stream)}
    x, names = fv.load_images([folder / name for name in labels], model=model)
    truth = torch.tensor([labels[name] for name in names])
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(16)]) == truth
    return x[right], truth[right], [name for name, fine in zip(names, right.tolist(), strict=True) if fine]


def other_classes(truth: Tensor, count: int, classes: int) -> Tensor:
    """``count`` different wrong classes for each photograph, [N, count]."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([torch.randperm(classes - 1, generator=generator)[:count] for _ in truth])
    return drawn + (drawn >= truth[:, None])


def fooled(model: nn.Module, x: Tensor, aims: Tensor, method: str, batch: int) -> dict[str, Any]:
    """Statistics over all photographs and classes, and the photographs and classes that failed."""
    started = time.perf_counter()
    parts = []
    for number, (image, row) in enumerate(zip(x[:, None], aims, strict=True), start=1):
        # One photograph at a time, with all of its classes, to bound the memory.
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
    arguments.add_argument("--batch", type=int, default=5, help="images in a forward pass")
    arguments.add_argument("--methods", default="lbfgs,sign", help="comma-separated: lbfgs, sign, gradient")
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
