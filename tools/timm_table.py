"""Runs every method on every architecture of tests/models/timm_architectures.py, and writes the table in docs/timm.md.

``python -m tools.timm_table`` takes half an hour; finished results are kept in build/timm.jsonl, and a second run
resumes.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch

from tests.models.timm_architectures import ARCHITECTURES
from tests.models.timm_checks import Row, check, problems

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "timm.jsonl"

HEAD = """# timm's architectures, one by one

{count} architectures of {families} families of timm {version} with random weights in float64, each on one image of
the size given. `saliency` is compared with autograd, `guided_backprop` with the paper's rule (for networks without ReLU
it is the gradient, and a warning says so), `occlusion` with a loop over 16 windows, and the model's state before with
that after. {incremental} sweep incrementally. "largest difference" is that of all three, relative to the largest value.
"map" is the size of the Grad-CAM map at the layer that is taken where none is named. Written by
`python -m tools.timm_table`.

Batch norms are written out as their formula for the comparison: of LeViT, XCiT, lambda networks, EfficientViT
and iFormer autograd's gradient through torch 2.14's own CPU batch norm differed from it, by up to the gradient's own
size; why was not found. Where random weights make a network unstable, the methods may differ by more than 1e-9, and the
table says so.

| architecture | image | saliency, guided | occlusion | map | largest difference |
| --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    KEPT.parent.mkdir(exist_ok=True)
    done = {}
    if KEPT.exists():
        for line in KEPT.read_text().splitlines():
            key, row = json.loads(line)
            done[key] = row
    for family, name, size, options in ARCHITECTURES:
        key = f"{name} {size} {json.dumps(options)}"
        if key not in done:
            done[key] = _tried(family, name, size, options)
            with KEPT.open("a") as file:
                file.write(json.dumps([key, done[key]]) + "\n")
            print(name, done[key].get("error") or f"{done[key]['seconds']:.1f} s", flush=True)
    rows = []
    for _, name, size, options in ARCHITECTURES:
        found = done[f"{name} {size} {json.dumps(options)}"]
        rows.append((name, options, found.get("error"), None if "error" in found else Row(**found)))
    (ROOT / "docs" / "timm.md").write_text(_table(rows))
    wrong = [f"{name}: {error or problems(row)}" for name, _, error, row in rows if error or problems(row)]
    print("\n".join(wrong) or "all as defined")
    sys.exit(bool(wrong))


def _tried(family: str, name: str, size: int, options: dict[str, Any]) -> dict[str, Any]:
    try:
        return dataclasses.asdict(check(name, family, size, options))
    except Exception as error:  # the table should show the error, and the run should continue
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def _table(rows: list[tuple[str, dict[str, Any], str | None, Row | None]]) -> str:
    good = [row for _, _, _, row in rows if row is not None]
    incremental = sum(row.path == "incremental" for row in good)
    words = HEAD.format(
        count=len(rows),
        families=len({family for family, *_ in ARCHITECTURES}),
        version=timm.__version__,
        incremental=f"{incremental} of them",
    )
    return words + "".join(_line(*each) for each in rows)


def _line(name: str, options: dict[str, Any], error: str | None, row: Row | None) -> str:
    channels = f", {options['in_chans']} channels" if "in_chans" in options else ""
    if row is None:
        return f"| `{name}`{channels} | | {error} | | | |\n"
    largest = max(row.saliency, row.guided, row.occlusion)
    equal = "equal" if max(row.saliency, row.guided) < 1e-9 else "differ"
    sweep = row.path + (f": {row.reason}" if row.reason else "")
    return f"| `{name}`{channels} | {row.size} | {equal} | {sweep} | {row.cam} | {largest:.0e} |\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
