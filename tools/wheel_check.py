"""Installs wheels into empty environments, outside the checkout, and runs the operator tests and the demo there.

    python tools/wheel_check.py dist/*.whl --python python3.10 --python python3.13 --torch torch==2.10.0

All combinations of Python, torch and wheel are tested. PATH contains only the environment, so that no compiler and no
CMake can be found. An environment with torch for CUDA takes several gigabytes; each is removed before the next is made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"

# Packages that the operator tests need besides fastviz, and test modules whose requirements the environment lacks.
NEEDS = ["pytest", "pytest-timeout"]
ELSEWHERE = {"test_against_libraries.py"}

INSTALL = ["-m", "pip", "install", "-q", "--no-compile"]

WHAT_IT_IS = """
import json, sys, torch, fastviz
where = fastviz.ops.libraries()
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, fastviz {fastviz.__version__}:", json.dumps(where))
assert "site-packages" in fastviz.__file__, fastviz.__file__
"""


def environment(folder: Path) -> dict[str, str]:
    """The environment variables of this process, without those that lead to the checkout or to a compiler."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "CUDA_HOME", "CC", "CXX"}}
    return kept | {"PATH": str(folder / "bin")}


def run(python: Path, *arguments: str, cwd: Path) -> str:
    """The output of the command. If it fails, the output goes to stderr and this process exits."""
    done = subprocess.run(
        [python, *arguments], cwd=cwd, env=environment(python.parents[1]), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\n{python} {' '.join(arguments)}: exit status {done.returncode}")
    return done.stdout


def copy_tests(folder: Path) -> None:
    (folder / "tests" / "ops").mkdir(parents=True)
    shutil.copy(TESTS / "conftest.py", folder / "tests")
    for path in TESTS.glob("ops/*.py"):
        if path.name not in ELSEWHERE:
            shutil.copy(path, folder / "tests" / "ops")


def check(python: str, torch: str, wheels: list[Path]) -> None:
    """One environment, in which the wheels are tested one after the other."""
    with tempfile.TemporaryDirectory(prefix="fastviz-wheel-") as name:
        folder = Path(name)
        copy_tests(folder)
        subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
        inside = folder / "venv" / "bin" / "python"
        run(inside, *INSTALL, torch, *NEEDS, str(wheels[0]), cwd=folder)
        for wheel in wheels:
            run(inside, *INSTALL, "--no-deps", "--force-reinstall", str(wheel), cwd=folder)
            print(f"{wheel.name}\n  {run(inside, '-c', WHAT_IT_IS, cwd=folder).strip()}", flush=True)
            options = ["-c", os.devnull, "--rootdir", ".", "--import-mode=importlib", "-m", "not cuda"]
            said = run(inside, "-m", "pytest", "-q", "tests", *options, cwd=folder)
            print(f"  operator tests: {said.strip().splitlines()[-1]}", flush=True)
            run(inside, "-m", "fastviz", "demo", "--out", "demo", cwd=folder)
            pages = sorted(path.name for path in (folder / "demo").glob("*.html"))
            if not pages:
                sys.exit(f"fastviz demo wrote no page into {folder / 'demo'}")
            print(f"  fastviz demo: {', '.join(pages)}", flush=True)
            shutil.rmtree(folder / "demo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="+", type=lambda word: Path(word).resolve())
    parser.add_argument("--python", action="append", help="an interpreter (default: this one)")
    parser.add_argument("--torch", action="append", help="pip's requirement for torch (default: the newest)")
    chosen = parser.parse_args()
    for python in chosen.python or [sys.executable]:
        for torch in chosen.torch or ["torch"]:
            check(python, torch, chosen.wheels)


if __name__ == "__main__":
    main()
