"""Time to the first map, against captum: ``python -m benchmarks.engine.incremental.first_map``.

Each time in a new process, from its start to an occlusion map of one photograph-sized image: Python and torch are
started, the package is imported, the network is built, and windows of 16 at a step of 16 are swept. captum's
``Occlusion`` gets 8 windows per pass. fastviz decides by itself whether to trace. The parts are printed too: imports
(including torch), the network, the sweep.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import parse, parser, row, write

NETWORKS = ("squeezenet1_0", "resnet50")
WINDOW = 16
HEAD = "import sys, time; began = float(sys.argv[1]); threads = int(sys.argv[3])"
FASTVIZ = f"""
import torch, fastviz
torch.set_num_threads(threads)
imported = time.time()
torch.manual_seed(0)
model, x = fastviz.load_model(sys.argv[2]), torch.randn(1, 3, 224, 224)
loaded = time.time()
fastviz.occlusion(model, x, 7, window={WINDOW}, stride={WINDOW})
"""
CAPTUM = f"""
import torch, torchvision
from captum.attr import Occlusion
torch.set_num_threads(threads)
imported = time.time()
torch.manual_seed(0)
model, x = torchvision.models.get_model(sys.argv[2], weights=None).eval(), torch.randn(1, 3, 224, 224)
loaded = time.time()
with torch.inference_mode():
    window = dict(sliding_window_shapes=(3, {WINDOW}, {WINDOW}), strides=(3, {WINDOW}, {WINDOW}))
    Occlusion(model).attribute(x, target=7, perturbations_per_eval=8, **window)
"""
TAIL = "print([imported - began, loaded - imported, time.time() - loaded])"
PARTS = ("imports", "network", "sweep")


def parts_of(script: str, network: str, threads: int) -> list[float]:
    """Seconds of the three parts, in a process of its own."""
    command = [sys.executable, "-c", f"{HEAD}\n{script}\n{TAIL}", str(time.time()), network, str(threads)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]).stdout
    found: list[float] = json.loads(said.splitlines()[-1])
    return found


def measured(network: str, rounds: int, threads: int) -> dict[str, Any]:
    found: dict[str, list[list[float]]] = {"fastviz": [], "captum": []}
    for _ in range(rounds):
        for name, script in (("fastviz", FASTVIZ), ("captum", CAPTUM)):
            found[name].append(parts_of(script, network, threads))
    times = {
        name: {"median_ms": 1000 * statistics.median(sum(each) for each in runs), "spread_ms": 0.0}
        for name, runs in found.items()
    }
    details = {
        name: {part: statistics.median(values) for part, values in zip(PARTS, zip(*runs, strict=True), strict=True)}
        for name, runs in found.items()
    }
    for name, each in details.items():
        print(f"  {network}, {name}: " + ", ".join(f"{part} {value:.2f} s" for part, value in each.items()))
    line = row("time to the first map", f"{network}, 196 windows", times, {"captum": 0.97})
    return {**line, "details": {"network": network, "seconds": details}}


def main() -> None:
    arguments = parser(__doc__, "first-map")
    arguments.add_argument("--only", choices=NETWORKS, help="one network")
    arguments.add_argument("--rounds", type=int, default=3)
    options = parse(arguments, "first-map")
    rows = [measured(name, options.rounds, options.threads or 2) for name in NETWORKS if options.only in (None, name)]
    write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
