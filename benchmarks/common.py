"""Interleaved timing, and result files that record the machine and versions.

The compared calls alternate within a round, so that a slow phase of the machine affects all of them; the median over
the rounds is reported. On CUDA, device events time a call, and buffers rotate so that none of them stays in the cache.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"

PAUSE = 0.1
"""Seconds after which the threads of OpenBLAS, oneDNN and OpenMP have gone to sleep."""


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of one call, including its work on the device."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def side_by_side(
    calls: dict[str, Callable[[], Any]], device: torch.device, *, rounds: int = 9, least: float = 0.05, warm_up: int = 3
) -> dict[str, dict[str, float]]:
    """Median and spread (half of the interquartile range), in milliseconds, of each call.

    A call shorter than ``least`` seconds is repeated within a round until it takes that long. On a CPU there is a pause
    before each, because the threads of a library wait for more work in a loop for a while, and slow down what comes
    next.
    """
    repeats = {}
    for name, call in calls.items():
        for _ in range(warm_up):
            call()
        repeats[name] = max(1, round(least / max(seconds(call, device), 1e-7))) if least else 1
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():

            def repeated(call: Callable[[], Any] = call, count: int = repeats[name]) -> None:
                for _ in range(count):
                    call()

            if device.type == "cpu":
                time.sleep(PAUSE)
            times[name].append(seconds(repeated, device) / repeats[name] * 1000)
    summary = {}
    for name, values in times.items():
        lower, _, upper = statistics.quantiles(values, n=4) if len(values) > 1 else 3 * values
        summary[name] = {"median_ms": statistics.median(values), "spread_ms": (upper - lower) / 2}
    return summary


def shares(call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """The six operators that take most of a call's time, with their fractions of it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        call()
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times = {event.key: float(getattr(event, kind)) for event in recorded.key_averages()}
    total = sum(times.values())
    return {key: round(times[key] / total, 3) for key in sorted(times, key=lambda key: -times[key])[:6]}


def machine(device: torch.device) -> dict[str, Any]:
    """Date, commit, processor or GPU, versions and number of threads."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    if device.type == "cuda":
        facts |= {"card": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return facts


def kind(device: torch.device) -> str:
    """The kind of machine, which a result file's name ends in: ``cuda``, or ``cpu-`` and what torch computes with,
    ``avx512``, ``avx2`` or ``default``."""
    if device.type == "cpu":
        return f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}"
    return device.type


def processor() -> str:
    """The name of the processor, from Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def row(
    name: str, case: str, times: dict[str, dict[str, float]], targets: dict[str, float], note: str = ""
) -> dict[str, Any]:
    """One row of a result file: how many times faster "fastviz" is than each alternative, and the target ratio."""
    mine = times["fastviz"]["median_ms"]
    ratios = {rival: value["median_ms"] / mine for rival, value in times.items() if rival != "fastviz"}
    print(f"{name:28s} {case:34s} {mine:9.3f} ms  " + "  ".join(f"{k} {v:.2f}x" for k, v in ratios.items()), flush=True)
    return {"name": name, "case": case, "times": times, "ratios": ratios, "targets": targets, "note": note}


def write(path: Path, rows: list[dict[str, Any]], device: torch.device) -> None:
    """Write a result file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"machine": machine(device), "rows": rows}, indent=1) + "\n")
    temporary.replace(path)
    print(f"wrote {path}")


def parser(description: str | None, default: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks share: --device, --threads, --out."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    result.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's default")
    result.add_argument("--out", type=Path, help=f"default: {default}-KIND.json in benchmarks/results")
    return result


def parse(arguments: argparse.ArgumentParser, default: str) -> argparse.Namespace:
    """Parse the arguments, set the number of threads, and fill in ``out``."""
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out = options.out or RESULTS / f"{default}-{kind(options.device)}.json"
    torch.manual_seed(0)
    return options
