"""This checkout against another one, both built: ``python -m benchmarks.before_after ../fastviz-before --threads 2``.

A process whose memory lies well is several percent faster than another one with the same code. So each round starts two
fresh processes, one a checkout, in turn first; a row's ratio is the median of the rounds' ratios. The methods called
here have had the same arguments since 0.1.0.
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import common

ROOT = Path(__file__).parents[1]
TARGET = 0.97
"""No row of a change that should not cost anything may fall below this."""


def cases() -> dict[tuple[str, str], Callable[[], Any]]:
    """The timed calls, by method and case."""
    import torchvision

    import fastviz as fv

    torch.manual_seed(0)
    nets = {
        name: torchvision.models.get_model(name, weights=None).eval()
        for name in ("squeezenet1_0", "resnet18", "resnet50")
    }
    x = torch.randn(8, 3, 224, 224)
    eight = torch.ones(8, dtype=torch.int64)
    squeezenet, resnet18, resnet50 = nets.values()
    return {
        ("occlusion", "SqueezeNet"): lambda: fv.occlusion(squeezenet, x[:1], 1, window=32, stride=8),
        ("occlusion", "ResNet-18"): lambda: fv.occlusion(resnet18, x[:1], 1, window=48, stride=16),
        ("saliency", "ResNet-50, 1 image"): lambda: fv.saliency(resnet50, x[:1], 1),
        ("saliency", "ResNet-50, 8 images"): lambda: fv.saliency(resnet50, x, eight),
        ("guided_backprop", "ResNet-50, 1 image"): lambda: fv.guided_backprop(resnet50, x[:1], 1),
        ("guided_backprop", "ResNet-50, 8 images"): lambda: fv.guided_backprop(resnet50, x, eight),
        ("grad_cam", "ResNet-50, 1 image"): lambda: fv.grad_cam(resnet50, x[:1], 1),
        ("grad_cam", "ResNet-50, 8 images"): lambda: fv.grad_cam(resnet50, x, eight),
        ("maximize", "SqueezeNet"): lambda: fv.maximize(squeezenet, fv.class_score(3), size=96, steps=12, seed=0),
        ("maximize", "ResNet-18"): lambda: fv.maximize(resnet18, fv.class_score(3), size=96, steps=12, seed=0),
    }


def child(threads: int, calls: int) -> None:
    """Print method, case and the median of some calls, in seconds, after two that warm up.

    Python's garbage is collected between the rows: a collection takes as long as a step of a small network, and which
    call it meets is chance.
    """
    if threads:
        torch.set_num_threads(threads)
    for (name, case), call in cases().items():
        for _ in range(2):
            call()
        gc.collect()
        gc.disable()
        times = [common.seconds(call, torch.device("cpu")) for _ in range(calls)]
        print(f"{name}\t{case}\t{statistics.median(times)}", flush=True)


def measured(checkout: Path, threads: int, calls: int) -> dict[tuple[str, str], float]:
    """Seconds of each row in a fresh process of a checkout, and of the import beside torch's."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    imports = []
    for _ in range(calls):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import fastviz"], cwd="/", env=environment, check=True)
        imports.append(time.perf_counter() - begun)
    found = {("import", "with torch"): statistics.median(imports)}
    # this file's code, the checkout's fastviz
    script = f"""if True:
        import importlib.util, sys, fastviz
        assert fastviz.__file__.startswith({str(checkout)!r}), fastviz.__file__
        sys.path.append({str(ROOT)!r})
        spec = importlib.util.spec_from_file_location("before_after", {str(Path(__file__).resolve())!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.child({threads}, {calls})
    """
    command = [sys.executable, "-W", "ignore", "-c", script]
    lines = subprocess.run(command, cwd="/", env=environment, check=True, capture_output=True, text=True).stdout
    for line in lines.splitlines():
        name, case, seconds = line.split("\t")
        found[name, case] = float(seconds)
    return found


def main() -> None:
    parser = common.parser(__doc__, "versions/BEFORE")
    parser.add_argument("before", type=lambda word: Path(word).resolve(), help="another checkout, built")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=3, help="timed calls of each row in a process")
    before = parser.parse_args().before
    commit = ["git", "-C", before, "rev-parse", "--short", "HEAD"]
    name_before = subprocess.run(commit, check=True, capture_output=True, text=True).stdout.strip()
    options = common.parse(parser, f"versions/{name_before}")
    for checkout in (options.before, ROOT):
        subprocess.run([sys.executable, "-m", "compileall", "-q", checkout / "fastviz"], check=True)
    rounds = []
    for number in range(options.rounds):
        pair = {}
        for checkout in (options.before, ROOT) if number % 2 else (ROOT, options.before):
            pair[checkout] = measured(checkout, options.threads, options.calls)
        rounds.append((pair[options.before], pair[ROOT]))
        print(f"round {number + 1} of {options.rounds}", flush=True)
    rows = []
    for name, case in rounds[0][0]:
        ratios = [before[name, case] / after[name, case] for before, after in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
        mine = statistics.median(after[name, case] for _, after in rounds) * 1000
        print(f"{name:16s} {case:20s} {mine:9.1f} ms  {middle:.3f}x ({low:.3f} to {high:.3f})")
        times = {"fastviz": {"median_ms": mine, "spread_ms": 0.0}}
        rows.append(
            {
                **{"name": name, "case": case, "times": times, "ratios": {name_before: middle}},
                **{"targets": {name_before: TARGET}, "note": f"quartiles of rounds {low:.3f}x to {high:.3f}x"},
            }
        )
    common.write(options.out, rows, options.device)


if __name__ == "__main__":
    main()
