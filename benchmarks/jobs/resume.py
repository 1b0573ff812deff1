"""Resuming a finished job with many rows, and ten million names: ``python -m benchmarks.jobs.resume``.

The job's rows are written without explaining anything. Resuming it is measured in a separate process, from the call to
its end, with the peak memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

import fastviz as fv
from benchmarks.common import parse, parser, write
from fastviz import jobs
from fastviz.jobs.explainer import Explainer
from fastviz.jobs.inputs.items import FilePlace, Item, RowPlace, stamp_of
from fastviz.jobs.run import as_job
from fastviz.jobs.tables.done import Names
from fastviz.jobs.tables.schema import batch_of
from fastviz.jobs.tables.writer import Writer

METHODS = ["saliency", "grad_cam"]

GO_ON = """
import json, sys, time
from fastviz import jobs

def peak_mb():  # ru_maxrss would include what the parent held before it started this process
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmHWM"))

before = peak_mb()
started = time.perf_counter()
summary = jobs.run(sys.argv[1], sys.argv[2], methods=["saliency", "grad_cam"], maps="none")
seconds = time.perf_counter() - started
print(json.dumps({"seconds": round(seconds, 2), "peak_mb": peak_mb(), "mb_before_the_call": before,
                  "skipped": summary.skipped, "done": summary.done}))
"""


def rows_of(item: Item) -> list[dict[str, Any]]:
    stamp = dict(zip(("bytes", "modified", "changed"), item.stamp, strict=True))
    same = {"id": item.id, "uri": item.uri, "source": item.place.source, "hash": "0" * 64, "status": "ok"} | stamp
    return [same | {"method": name, "target": 3, "target_name": "espresso", "seconds": 0.01} for name in METHODS]


def finished(given: Path, items: Any, out: Path) -> None:
    """A job over ``given`` whose tables contain all ``items``."""
    jobs.run(given, out, methods=METHODS, maps="none", limit=1)
    explainer = Explainer(as_job(given, out, methods=METHODS, maps="none"))
    with Writer(out, explainer.schema) as writer:
        waiting: list[dict[str, Any]] = []
        for item in items:
            waiting += rows_of(item)
            if len(waiting) >= 2000:
                writer.write(batch_of(waiting, explainer.schema))
                waiting = []
        if waiting:
            writer.write(batch_of(waiting, explainer.schema))


def table(home: Path, count: int) -> tuple[Path, Any]:
    """A Parquet file with ``count`` pictures, and all of its inputs but the first."""
    path = home / "table.parquet"
    picture = (Path(fv.__file__).parent / "models/data/photos/rocket.jpg").read_bytes()
    columns = pa.schema([("id", pa.string()), ("image", pa.binary())])
    with parquet.ParquetWriter(path, columns) as file:
        for first in range(0, count, 50_000):
            numbers = range(first, min(first + 50_000, count))
            content = [picture if number == 0 else b"x" for number in numbers]
            file.write_table(pa.table([[f"images/{n:08d}.jpg" for n in numbers], content], schema=columns))
    stamp = stamp_of(str(path))
    names = (f"images/{number:08d}.jpg" for number in range(1, count))
    return path, (Item(name, name, 0, RowPlace(str(path), "image", 0, 0), None, stamp) for name in names)


def folder(home: Path, count: int) -> tuple[Path, Any]:
    """A folder with ``count`` pictures, which are links to one file, and all of its inputs but the first."""
    photos = home / "photos"
    picture = Path(fv.__file__).parent / "models/data/photos/rocket.jpg"
    first = photos / "000000" / "00000000.jpg"
    first.parent.mkdir(parents=True)
    first.write_bytes(picture.read_bytes())
    paths = []
    for number in range(1, count):
        path = photos / f"{number // 1000:06d}" / f"{number:08d}.jpg"
        path.parent.mkdir(exist_ok=True)
        if number % 60_000 == 0:  # file systems limit the links to one file
            first = path
            path.write_bytes(picture.read_bytes())
        else:
            os.link(first, path)
        paths.append(path)

    def items() -> Any:
        for path in paths:
            name = path.relative_to(photos).as_posix()
            yield Item(name, name, 0, FilePlace(str(path)), None, stamp_of(str(path)))

    return photos, items()


def measured(kind: str, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        given, items = (table if kind == "Parquet file" else folder)(home, count)
        finished(given, items, home / "out")
        ended = subprocess.run(
            [sys.executable, "-c", GO_ON, str(given), str(home / "out")], capture_output=True, text=True, check=True
        )
        found = json.loads(ended.stdout.splitlines()[-1])
        assert found["skipped"] == count, found
        return {"what": f"go on with a finished job, inputs from a {kind}", "images": count, "rows": 2 * count} | found


def many_names(count: int) -> dict[str, Any]:
    """The time to add and find ``count`` names."""
    generator = np.random.default_rng(0)
    names = Names(Path(tempfile.gettempdir()))
    before = _memory()
    started = time.perf_counter()
    most = 0
    for _ in range(count // 250_000):
        hashes = generator.integers(0, 1 << 63, (250_000, 2), dtype=np.uint64)
        names.add(hashes)
        most = max(most, _memory() - before)
    names.sort()
    added = time.perf_counter() - started
    started = time.perf_counter()
    for first in range(0, 250_000, 256):
        assert (names.find(hashes[first : first + 256]) >= 0).all()
    found = time.perf_counter() - started
    return {
        "what": "names of finished inputs",
        "names": count,
        "seconds_to_add": round(added, 1),
        "microseconds_to_find_one": round(found / 250_000 * 1e6, 2),
        "memory_mb": round(most / 1e6),
    }


def _memory() -> int:
    """The anonymous memory of this process in bytes, without file-backed pages."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def main() -> None:
    arguments = parser(__doc__, "jobs/resume")
    arguments.add_argument("--images", type=int, default=500_000)
    arguments.add_argument("--names", type=int, default=10_000_000)
    given = parse(arguments, "jobs/resume")
    rows = [measured(kind, given.images) for kind in ("Parquet file", "folder")]
    rows.append(many_names(given.names))
    print(json.dumps(rows, indent=2))
    write(given.out, rows, given.device)


if __name__ == "__main__":
    main()
