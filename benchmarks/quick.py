"""A row or two of every table, measured again and compared with the committed results of the same kind of processor:
``python -m benchmarks.quick`` (``make bench-quick``), under ten minutes on two cores.

Compared are ratios, fastviz against its rivals, as the machine may be another one. What has fallen by more than a tenth
is printed by name, and the exit status is 1 then. Tables without results for this kind of processor are left out, and
named.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, kind

FALL = 0.1
QUICK = {
    "operators": "ops.operators --only gram --only gram_loss",
    "occlusion": "methods.attribution.occlusion --only squeezenet1_0 --rounds 2",
    "first-call": "engine.incremental.first_call --only squeezenet1_0 --sizes 128 --rounds 3",
    "first-map": "engine.incremental.first_map --only squeezenet1_0 --rounds 2",
    "signals-and-volumes": "engine.incremental.axes --only '1-D ResNet-18' --rounds 1",
    "gradients": "methods.attribution.gradients --only units --rounds 3",
    "compat": "compat.drop_in --only losses",
    "cams": "compat.cams --only gradients",
    "lucent": "compat.lucent --only labels",
    "sampling": "methods.attribution.sampling --only integrated --rounds 1",
    "evaluation-curves": "evaluation.curves --images 1 --only windows --networks squeezenet1_0 --rounds 1",
    "evaluation-road": "evaluation.road --images 16 --rounds 1 --warm-up 0 --only smooth",
    "evaluation-sanity": "evaluation.sanity --rounds 1",
    "embedding": "methods.inspection.embedding --only maps",
    "patches": "methods.inspection.patches --few-only",
    "optimize": "methods.synthesis.activation_maximization --only variation",
    "style": "methods.synthesis.style_transfer --steps 5 --rounds 1",
    "texture": "methods.synthesis.texture_synthesis",
}
"""Table → the module of ``benchmarks`` and its arguments that measure some of its rows."""


def ratios(result: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """What is compared, by its name: how many times faster than each rival each row is."""
    found: dict[tuple[str, ...], float] = {}
    for row in result["rows"]:
        if "ratios" in row:
            found |= {(row["name"], row["case"], rival): ratio for rival, ratio in row["ratios"].items()}
        else:  # the table of first calls
            found |= {(row["network"], str(row["size"]), which): row[which] for which in ("first", "later", "traced")}
    return found


def measured(table: str, threads: int, folder: Path) -> dict[tuple[str, ...], float]:
    """The ratios of some rows of a table, from a run of its script.

    Raises:
        RuntimeError: the script failed.
    """
    module, *arguments = shlex.split(QUICK[table])
    out = folder / f"{table}.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--threads", str(threads), "--out", str(out)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"benchmarks.{module} ended with status {made.returncode}:\n{made.stderr[-2000:]}")
    return ratios(json.loads(out.read_text()))


def compared(table: str, found: dict[tuple[str, ...], float], before: dict[tuple[str, ...], float]) -> list[str]:
    """The lines of what fell, after a line for each ratio is printed."""
    fallen = []
    for name in found.keys() & before.keys():
        change = found[name] / before[name] - 1
        line = f"{table}: {', '.join(name)}: {before[name]:.2f}x -> {found[name]:.2f}x ({change:+.0%})"
        print(f"  {line}", flush=True)
        if change < -FALL:
            fallen.append(line)
    return fallen


def main() -> int:
    """Measure, compare, print; 1 where something fell or no row could be compared."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--only", action="append", choices=QUICK, help="a table; may be repeated")
    options = arguments.parse_args()
    ending = kind(torch.device("cpu"))
    fallen, left_out, rows, began = [], [], 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for table in options.only or QUICK:
            committed = RESULTS / f"{table}-{ending}.json"
            if not committed.exists():
                left_out.append(table)
                continue
            print(f"{table} ({time.perf_counter() - began:.0f} s)", flush=True)
            before = ratios(json.loads(committed.read_text()))
            found = measured(table, options.threads, Path(folder))
            same = len(found.keys() & before.keys())
            if not same:
                print(f"  {table}: none of the measured rows is among the committed results")
            rows += same
            fallen += compared(table, found, before)
    if left_out:
        print(f"no results of {ending} to compare with: {', '.join(left_out)}")
    print(f"{rows} ratios in {time.perf_counter() - began:.0f} s; {len(fallen)} fell by more than {FALL:.0%}")
    print("\n".join(fallen))
    return 1 if fallen or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
