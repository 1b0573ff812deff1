"""A job that is killed repeatedly: ``python -m benchmarks.jobs.kills IMAGES``.

Saliency and Grad-CAM of the built-in network. Each run is killed with SIGKILL at a random moment, and the next one
resumes. A part ends after a tenth of a second instead of a minute, so that the kills hit every stage of writing. Counts
lost images, duplicate images, and maps that differ from those of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastviz as fv
from benchmarks.common import parse, parser, write
from fastviz import images, jobs
from fastviz.jobs.tables import folder, writer


def run(model: Any, files: list[Path], out: Path) -> jobs.Summary:
    return jobs.run(files, out, model=model, methods=["saliency", "grad_cam"], batch_size=16)


def killed(model: Any, files: list[Path], out: Path, delay: float) -> bool:
    """Whether a run in a separate process was killed after ``delay`` seconds, before its end."""
    child = os.fork()
    if not child:
        threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        run(model, files, out)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def maps_of(out: Path) -> dict[tuple[str, str], Any]:
    table = jobs.open(out).table(["id", "method", "map"])
    keys = zip(table["id"].to_pylist(), table["method"].to_pylist(), strict=True)
    return dict(zip(keys, table["map"].to_pylist(), strict=True))


def main() -> None:
    arguments = parser(__doc__, "jobs/kills")
    arguments.add_argument("images", type=Path)
    arguments.add_argument("--count", type=int, default=6000)
    arguments.add_argument("--kills", type=int, default=100)
    given = parse(arguments, "jobs/kills")
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    model = fv.load_model("demo")
    files = images.find_images(given.images)[: given.count]
    home = Path(tempfile.mkdtemp())
    writer.SECONDS = 0.1
    generator = np.random.default_rng(0)
    kills = with_rows = 0
    started = time.perf_counter()
    for _ in range(3 * given.kills):
        before = len(folder.parts(home / "out"))
        kills += killed(model, files, home / "out", float(generator.uniform(0.1, 2.0)))
        with_rows += len(folder.parts(home / "out")) > before
        if kills == given.kills:
            break
    last = run(model, files, home / "out")
    run(model, files, home / "whole")
    names = Counter((row["id"], row["method"]) for row in jobs.open(home / "out").rows())
    found, whole = maps_of(home / "out"), maps_of(home / "whole")
    rows = [
        {
            "what": f"saliency and Grad-CAM, demo network, {len(files)} images, killed at random moments",
            "kills": kills,
            "kills_after_new_parts": with_rows,
            "done_by_the_last_run": last.done,
            "lost": len(whole.keys() - found.keys()),
            "doubled": sum(count > 1 for count in names.values()),
            "maps_that_differ": sum(found[key] != whole[key] for key in whole.keys() & found.keys()),
            "seconds": round(time.perf_counter() - started, 1),
        }
    ]
    print(json.dumps(rows, indent=2))
    write(given.out, rows, given.device)


if __name__ == "__main__":
    main()
