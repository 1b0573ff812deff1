"""Checks whether another tool's own tests pass with fastviz as its replacement.

``python tools/published_tests.py FOLDER [arguments of pytest]`` runs pytest in the folder twice, with the original tool
and as under ``python -m fastviz.accelerate``. It prints how many tests passed each time, and the names of tests that
pass only with the original: exit status 1 if there are any, 2 if no test ran. fastviz also computes the small calls
here that it would normally delegate to captum.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]

RUN = """
import sys

import pytest

if sys.argv.pop(1) == "fastviz":
    from fastviz.accelerate._on_import import accelerate_on_import

    accelerate_on_import()
    from fastviz.compat.captum import _sweep

    _sweep.MIN_WORK = 0.0
sys.exit(pytest.main(sys.argv[1:]))
"""


def outcomes(folder: Path, which: str, arguments: list[str]) -> dict[str, str]:
    """Test → "passed", "skipped", "failure" or "error"."""
    with tempfile.TemporaryDirectory() as temporary:
        results = Path(temporary) / "results.xml"
        options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", f"--junitxml={results}"]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        subprocess.run(
            [sys.executable, "-c", RUN, which, *options, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": paths},
            check=False,
        )
        found: dict[str, str] = {}
        for case in ElementTree.parse(results).iter("testcase") if results.exists() else ():
            name = f"{case.get('classname')}::{case.get('name')}"
            bad = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
            if found.get(name, "passed") == "passed":
                found[name] = bad
        return found


def main() -> int:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        print(__doc__, file=sys.stderr)
        return 2
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    plain, fast = (outcomes(folder, which, arguments) for which in ("plain", "fastviz"))
    for title, found in (("as it is", plain), ("with fastviz", fast)):
        counts = Counter(found.values())
        print(f"{title}: {len(found)} tests, " + ", ".join(f"{count} {each}" for each, count in counts.most_common()))
    lost = [name for name, outcome in plain.items() if outcome == "passed" and fast.get(name) != "passed"]
    for name in lost:
        print(f"passes only with the original: {name} ({fast.get(name, 'did not run')})")
    if not plain:
        return 2
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
