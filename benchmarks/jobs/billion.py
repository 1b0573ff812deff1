"""Resources for a job over a billion images: ``python -m benchmarks.jobs.billion IMAGES WEIGHTS``, or ``--docs``.

Measured with SqueezeNet at 224x224, saliency and Grad-CAM: seconds per image on one device (a GPU or a CPU core), bytes
per image in the tables, and how many images per second one process can write. The last one limits a job whatever its
number of actors, and so determines into how many jobs a billion images should be split.

With ``--docs`` nothing is measured, and the tables of ``docs/jobs.md`` are rewritten from the result files.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import fastviz as fv
from benchmarks.common import RESULTS, parse, parser, write
from fastviz import images, jobs
from fastviz.jobs.engines.decoding import Decoder
from fastviz.jobs.explainer import Explainer
from fastviz.jobs.inputs.items import FilePlace, Item, stamp_of
from fastviz.jobs.tables.writer import Writer

DOCS = Path(__file__).parents[2] / "docs/jobs.md"
METHODS = ["saliency", "grad_cam"]
BILLION = 1_000_000_000


def written_a_second(explainer: Explainer, files: list[Path], repeats: int) -> float:
    """Images per second whose finished rows one process can write."""
    decoder = Decoder(explainer.seen, explainer.shown)
    items = [
        Item(path.name, path.name, at, FilePlace(str(path)), None, stamp_of(str(path))) for at, path in enumerate(files)
    ]
    batches = list(explainer.rows([decoder[item] for item in items]))
    with tempfile.TemporaryDirectory() as home:
        began = time.perf_counter()
        with Writer(Path(home), explainer.schema) as writer:
            for _ in range(repeats):
                for batch in batches:
                    writer.write(batch)
        return repeats * len(files) / (time.perf_counter() - began)


def measured(given: Any) -> list[dict[str, Any]]:
    files = images.find_images(given.images)[: given.count]
    model = fv.load_model("squeezenet1_0", given.weights).to(given.device)
    options: dict[str, Any] = {"model": model, "methods": METHODS, "maps": "uint8"}
    with tempfile.TemporaryDirectory() as home:
        jobs.run(files, Path(home) / "warm", **options)
        # the same photographs under many names, so that the job is long compared with its start
        table = Path(home) / "table.csv"
        lines = [f"{path.resolve()},{turn}-{path.name}" for turn in range(given.turns) for path in files]
        table.write_text("path,id\n" + "\n".join(lines) + "\n")
        began = time.perf_counter()
        summary = jobs.run(table, Path(home) / "out", **options)
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in jobs.open(Path(home) / "out").parts)
    assert summary.done == len(lines)
    explainer = Explainer(jobs.Job(files, "out", **options))
    return [
        {
            "what": "saliency and Grad-CAM, SqueezeNet at 224x224, uint8 maps",
            "images": summary.done,
            "seconds_an_image": seconds / summary.done,
            "device_busy": round(summary.utilisation, 3),
            "bytes_an_image": round(size / summary.done),
            "images_written_a_second": round(written_a_second(explainer, files, max(1, given.turns)), 1),
        }
    ]


# ----------------------------------------------------------------------------------------------------------- the docs


def plan_of(row: dict[str, Any], device: str) -> list[str]:
    """The table rows for one device, computed from the measured values."""
    hours = BILLION * row["seconds_an_image"] / 3600
    fed = max(1, math.floor(row["images_written_a_second"] * row["seconds_an_image"]))
    split = math.ceil(100 / fed)
    return [
        f"| measured: time per image on one {device} | {1000 * row['seconds_an_image']:.2f} ms |",
        f"| measured: size in the tables | {row['bytes_an_image'] / 1000:.1f} kB per image |",
        f"| measured: one process writes | {row['images_written_a_second']:.0f} images per second ({fed} devices) |",
        f"| hours of one {device} | {hours:,.0f} |",
        f"| storage | {BILLION * row['bytes_an_image'] / 1e12:,.1f} TB in at least {BILLION // 10_000:,} parts |",
        f"| on 100 devices | {hours / 100:,.0f} hours, as {split} job{'s' if split > 1 else ''} |",
        f"| cost | {hours:,.0f} x the price of an hour + {BILLION * row['bytes_an_image'] / 1e9:,.0f} "
        "x the price of a GB-month of storage + the cost of reading (two requests per image, far fewer with shards) |",
    ]


def replaced(text: str, name: str, lines: list[str]) -> str:
    """``text`` with ``lines`` between the markers ``name``."""
    inside = "\n".join(lines)
    found, count = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda match: f"{match[1]}{inside}\n{match[2]}", text, flags=re.S
    )
    assert count == 1, name
    return found


def write_docs() -> None:
    text = DOCS.read_text()
    for sizes in sorted((RESULTS / "jobs").glob("sizes-*.json"))[:1]:  # the same on all processors
        rows = json.loads(sizes.read_text())["rows"]
        kinds = list(rows[0]["bytes_a_map"])
        lines = ["| kB per map, 224x224 | " + " | ".join(kinds) + " | entropy of `uint8` | given neighbours |"]
        lines.append("| --- |" + " --- |" * (len(kinds) + 2))
        for row in rows:
            figures = [*row["bytes_a_map"].values(), row["entropy_of_uint8"], row["entropy_beside_neighbours"]]
            lines.append(f"| {row['what']} | " + " | ".join(f"{each / 1000:.1f}" for each in figures) + " |")
        text = replaced(text, "sizes", lines)
    lines = []
    for path in sorted((RESULTS / "jobs").glob("billion-*.json")):
        found = json.loads(path.read_text())
        card = found["machine"].get("card")
        device = card or f"core of {found['machine']['processor']}"
        lines += ["", "| a billion images | |", "| --- | --- |", *plan_of(found["rows"][0], device)]
    if lines:
        text = replaced(text, "billion", [*lines[1:], ""])
    DOCS.write_text(text)
    print(f"wrote {DOCS}")


def main() -> None:
    arguments = parser(__doc__, "jobs/billion")
    arguments.add_argument("images", type=Path, nargs="?")
    arguments.add_argument("weights", type=Path, nargs="?")
    arguments.add_argument("--count", type=int, default=63)
    arguments.add_argument("--turns", type=int, default=4, help="how often each photograph is used")
    arguments.add_argument("--docs", action="store_true", help="only write the tables of docs/jobs.md from the results")
    given = parse(arguments, "jobs/billion")
    if given.docs:
        write_docs()
        return
    if given.images is None or given.weights is None:
        arguments.error("IMAGES and WEIGHTS are needed, or --docs")
    if given.device.type == "cpu":
        torch.set_num_threads(1)
    rows = measured(given)
    print(json.dumps(rows, indent=2))
    write(given.out, rows, given.device)


if __name__ == "__main__":
    main()
