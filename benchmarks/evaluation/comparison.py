"""The time of ``fastviz compare``: ``python -m benchmarks.evaluation.comparison PHOTOS --model M --weights FILE``.

Six methods, six measures and a random map, with the command's default numbers of steps. One run, from the files to the
page.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.common import parse, parser, write
from fastviz.jobs.comparison import MEASURED, METHODS, compare


def main() -> None:
    arguments = parser(__doc__, "evaluation-comparison")
    arguments.add_argument("photos", type=Path)
    arguments.add_argument("--model", default="demo")
    arguments.add_argument("--weights")
    options = parse(arguments, "evaluation-comparison")
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        found = compare(
            [options.photos],
            Path(folder) / "comparison",
            model=options.model,
            weights=options.weights,
            device=str(options.device),
            progress=True,
        )
        milliseconds = 1000 * (time.perf_counter() - began)
    photos = len({line["index"] for line in found.rows})
    case = f"{options.model}, {photos} photographs, {len(METHODS)} methods, {len(MEASURED)} measures"
    print(f"{case}: {milliseconds / 1000:.0f} s")
    times = {"fastviz": {"median_ms": milliseconds, "spread_ms": 0.0}}
    result = {"name": "compare", "case": case, "times": times, "ratios": {}, "targets": {}, "note": "one run"}
    write(options.out, [result], options.device)


if __name__ == "__main__":
    main()
