"""Checks everything that needs an NVIDIA GPU, offline: ``python tools/gpu_check.py --out DIR``.

Builds the extension in place and the C++ test with CMake, for this GPU only; runs the CUDA tests, the C++ test alone
and under compute-sanitizer's four tools; measures the operators, and gradient methods replayed as CUDA graphs. Writes
DIR/gpu_check.json (results, times and the GPU), DIR/gpu_check.log (the output of every stage), and DIR/operators.json
and DIR/gradients.json (the benchmarks). Exit status: 0 if all stages pass, 1 if one fails, 2 without a GPU. Needs
torch, numpy, pytest, cmake, ninja and a CUDA toolkit, and for the gradients torchvision and captum.

It ends within nine minutes: each stage has a time limit and gets at most what is left of ``--budget`` seconds; without
time left it is not started. Both files are rewritten after every group of stages.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
BUDGET = 520.0
"""Seconds for all stages; with the start of torch and writing files less than nine minutes."""


@dataclasses.dataclass
class Stage:
    """One command with its time limit in seconds; ``needs`` names stages that must have passed."""

    name: str
    command: list[str]
    limit: float
    needs: tuple[str, ...] = ()
    status: str = "not run"
    seconds: float = 0.0
    detail: str = ""
    output: str = ""

    def run(self, environment: dict[str, str], deadline: float) -> None:
        """Runs the command, and kills it and its child processes after its time limit or at the ``deadline``."""
        start = time.monotonic()
        limit = min(self.limit, deadline - start)
        if limit <= 0:
            self.detail = "no time was left"
            return
        try:
            process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except FileNotFoundError:
            self.status, self.detail = "failed", f"there is no program {self.command[0]!r}"
            return
        try:
            self.output, _ = process.communicate(timeout=limit)
            self.status = "passed" if process.returncode == 0 else "failed"
            self.detail = "" if process.returncode == 0 else f"exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            # The whole process group, because a build has compilers as child processes.
            os.killpg(process.pid, signal.SIGKILL)
            self.output, _ = process.communicate()
            self.status, self.detail = "failed", f"not done after {limit:.0f} s"
        self.seconds = round(time.monotonic() - start, 1)
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        if lines:
            self.detail = f"{self.detail}: {lines[-1]}" if self.detail else lines[-1]


def stages(out: Path, architecture: str) -> list[list[Stage]]:
    """Groups of stages. The stages of a group run in parallel; measurements run alone."""
    native = ROOT / "build" / "gpu-native"
    test = str(native / "kernels_test")
    configure = f"cmake -S . -B {native} -G Ninja -DCMAKE_CUDA_ARCHITECTURES={architecture.replace('.', '')}"
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    python = sys.executable
    builds = [
        Stage("build extension", [python, "setup.py", "-q", "build_ext", "--inplace"], 180),
        Stage("build C++ test", ["sh", "-c", f"{configure} && cmake --build {native} --target kernels_test"], 180),
    ]
    tests = [
        Stage("pytest -m cuda", [python, "-m", "pytest", "-q", "-m", "cuda", "tests"], 160, (builds[0].name,)),
        Stage("C++ test", [test], 60, (builds[1].name,)),
    ]
    tests += [
        Stage(tool, [sanitizer, "--tool", tool, "--error-exitcode", "9", test], 160, (builds[1].name,))
        for tool in SANITIZERS
    ]
    measured = [("ops.operators", [], 80)]
    if find_spec("captum") and find_spec("torchvision"):
        measured.append(("methods.attribution.gradients", ["--only", "methods"], 100))
    measurements = []
    for name, more, limit in measured:
        command = [
            python,
            "-m",
            f"benchmarks.{name}",
            "--device",
            "cuda",
            "--out",
            str(out / f"{name.rpartition('.')[2]}.json"),
            *more,
        ]
        measurements.append([Stage(f"benchmark of {name.rpartition('.')[2]}", command, limit, (builds[0].name,))])
    return [builds, tests, *measurements]


def run(groups: list[list[Stage]], environment: dict[str, str], deadline: float, done: Callable[[], object]) -> None:
    """Runs the groups in order until the ``deadline``, and calls ``done`` after each."""
    passed: set[str] = set()
    for group in groups:
        wanted = [stage for stage in group if passed.issuperset(stage.needs)]
        for stage in group:
            if stage not in wanted:
                stage.detail = f"needs {' and '.join(stage.needs)}"
        with ThreadPoolExecutor(len(group)) as pool:
            list(pool.map(lambda stage: stage.run(environment, deadline), wanted))
        passed.update(stage.name for stage in wanted if stage.status == "passed")
        done()


def write(out: Path, card: dict[str, str], groups: list[list[Stage]]) -> None:
    every = [stage for group in groups for stage in group]
    record = {
        **card,
        "stages": [{k: v for k, v in vars(s).items() if k in ("name", "status", "seconds", "detail")} for s in every],
    }
    (out / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n")
    log = [f"==== {s.name}: {s.status} after {s.seconds} s\n$ {' '.join(s.command)}\n{s.output}\n" for s in every]
    (out / "gpu_check.log").write_text("\n".join(log))


def first_line(*command: str) -> str:
    try:
        lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return lines[0].strip() if lines else "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, created if needed")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for all of it, {BUDGET:g} if not given")
    given = parser.parse_args()
    out, start = given.out.resolve(), time.monotonic()
    try:
        import torch
    except ImportError as error:
        print(f"gpu-check: torch cannot be imported: {error}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} finds no NVIDIA GPU: nothing was checked", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)

    architecture = ".".join(map(str, torch.cuda.get_device_capability()))
    card = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": first_line("git", "rev-parse", "HEAD"),
        "card": torch.cuda.get_device_name(),
        "compute_capability": architecture,
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": sys.version.split()[0],
    }
    environment = {
        **os.environ,
        "TORCH_CUDA_ARCH_LIST": architecture,
        "FASTVIZ_CUDA": "1",
        "FAIL_WITHOUT_CUDA": "1",
        "PYTHONUNBUFFERED": "1",
    }
    groups = stages(out, architecture)
    try:
        run(groups, environment, start + given.budget, lambda: write(out, card, groups))
    finally:
        write(out, card, groups)

    every = [stage for group in groups for stage in group]
    for stage in every:
        if stage.status == "failed":
            print(f"---- {stage.name}, the end of its output:")
            print("\n".join(stage.output.splitlines()[-40:]))
    if every[-1].status == "passed":
        print(every[-1].output)
    print(f"\n{card['card']}, torch {card['torch']}, driver {card['driver']}, {time.monotonic() - start:.0f} s")
    for stage in every:
        print(f"{stage.name:16s} {stage.status:8s} {stage.seconds:6.1f} s  {stage.detail[:90]}")
    return 0 if all(stage.status == "passed" for stage in every) else 1


if __name__ == "__main__":
    sys.exit(main())
