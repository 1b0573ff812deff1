"""The report of a job with many rows, in a browser: ``python -m benchmarks.jobs.report --rows 100000``.

The rows are synthetic, with small maps and thumbnails. The page is opened from its file in headless Chromium
(playwright, ``pip install playwright``; ``--chromium`` gives the path of the program). Prints the time to write the
report, its size, the time to the first paint and to the first lines, the time to read all lines, the time between
frames while the list is scrolled from top to end and with the wheel, and the time of a filter and of a sort.
"""

from __future__ import annotations

import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import RESULTS, kind, parser, write
from fastviz import jobs
from fastviz.jobs import report
from fastviz.jobs.explainer import Explainer
from fastviz.jobs.run import as_job
from fastviz.jobs.tables.schema import batch_of, encode_map
from fastviz.jobs.tables.writer import Writer

METHODS = ["saliency", "grad_cam"]
SIDE = 32

# Starts a scroll and returns the times between frames until it ends, in milliseconds.
SCROLL = """
([step, frames]) => new Promise(done => {
  const list = document.getElementById("list"), times = [];
  let last = performance.now(), left = frames;
  list.scrollTop = 0;
  requestAnimationFrame(function go(now) {
    times.push(now - last); last = now;
    if (--left <= 0) return done(times.slice(2));
    list.scrollTop += step < 0 ? list.scrollHeight / frames : step;
    requestAnimationFrame(go);
  });
})
"""

TAKES = """
([id, value]) => {
  const started = performance.now(), one = document.getElementById(id);
  one.value = value;
  one.dispatchEvent(new Event("input", { bubbles: true }));
  return new Promise(done => {
    requestAnimationFrame(() => setTimeout(() => requestAnimationFrame(() => done(performance.now() - started)), 0));
  });
}
"""


def thumbnails() -> list[bytes]:
    """A few hundred different thumbnails made from the package's photographs."""
    found = []
    for path in sorted((Path(jobs.__file__).parents[1] / "models/data/photos").glob("*.jpg")):
        picture = Image.open(path).convert("RGB").resize((224, 224))
        for number in range(100):
            turned = picture.rotate(3.6 * number, Image.Resampling.BILINEAR)
            buffer = io.BytesIO()
            turned.resize((112, 112)).save(buffer, "JPEG", quality=80)
            found.append(buffer.getvalue())
    return found


def images(count: int, names: list[str]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each image."""
    generator = np.random.default_rng(0)
    pictures = thumbnails()
    maps = [encode_map(generator.random((SIDE, SIDE), dtype=np.float32), "uint8") for _ in range(500)]
    for number in range(count):
        target = int(generator.integers(len(names)))
        name = f"{number // 1000:04d}/{number:07d}.jpg"
        same = {
            "id": name, "uri": name, "source": f"file:///photos/{name}", "hash": "0" * 64, "bytes": 1, "modified": 0,
            "changed": 0, "target": target, "target_name": names[target], "predicted": target,
            "predicted_name": names[target], "status": "ok",
        }  # fmt: skip
        same["probability"] = same["predicted_probability"] = float(generator.beta(2, 1))
        if number % 997 == 5:
            keep = ("id", "uri", "source", "hash", "bytes", "modified", "changed")
            yield [{key: same[key] for key in keep} | {"status": "failed", "error": f"image {name!r}: is empty"}]
            continue
        rows = []
        for at, method in enumerate(METHODS):
            stored, scale, zero = maps[int(generator.integers(len(maps)))]
            row = same | {"method": method, "parameters": "0", "seconds": float(generator.gamma(2, 0.01))}
            row |= {"map": stored, "map_shape": [SIDE, SIDE], "map_scale": scale, "map_zero": zero}
            rows.append(row | ({} if at else {"thumbnail": pictures[number % len(pictures)]}))
        yield rows


def made(out: Path, rows: int) -> None:
    """A job's folder with about this number of rows."""
    settings = {"methods": METHODS, "maps": "uint8", "map_size": SIDE, "thumbnails": True}
    photo = Path(jobs.__file__).parents[1] / "models/data/photos/rocket.jpg"
    jobs.run(photo, out, **settings)
    explainer = Explainer(as_job(photo, out, **settings))
    with Writer(out, explainer.schema) as writer:
        waiting: list[dict[str, Any]] = []
        for of_image in images(rows // len(METHODS), explainer.names or []):
            waiting += of_image
            if len(waiting) >= 2000:
                writer.write(batch_of(waiting, explainer.schema))
                waiting = []
        writer.write(batch_of(waiting, explainer.schema))


def frames(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "median_ms": round(statistics.median(times), 1),
        "p95_ms": round(ordered[int(0.95 * len(ordered))], 1),
        "largest_ms": round(ordered[-1], 1),
    }


def until(page: Any, expression: str) -> None:
    """Wait until ``expression`` is true; the page's security policy forbids playwright's own function."""
    while not page.evaluate(expression):
        page.wait_for_timeout(10)


def seen(page_path: Path, chromium: str | None) -> dict[str, Any]:
    """The browser's measurements of the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1360, "height": 850})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        began = time.perf_counter()
        page.goto(page_path.resolve().as_uri())
        until(page, "performance.getEntriesByName('fastviz-lines').length > 0")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        first = page.evaluate("performance.getEntriesByName('fastviz-lines')[0].startTime")
        total = page.evaluate("JSON.parse(document.getElementById('page').textContent).lines")
        until(page, f"fastviz.lines.id.length === {total}")
        every = time.perf_counter() - began
        page.wait_for_timeout(1000)
        found: dict[str, Any] = {
            "first_paint_s": round(paint / 1000, 3),
            "first_lines_s": round(first / 1000, 3),
            "all_lines_s": round(every, 2),
        }
        for view in ("sheet", "rows"):
            page.click(f"button[data-view={view}]")
            page.wait_for_timeout(300)
            found[f"{view}: top to end"] = frames(page.evaluate(SCROLL, [-1, 240]))
            found[f"{view}: by the wheel"] = frames(page.evaluate(SCROLL, [60, 240]))
        for name, control in (("sort by class", ["sort", "class"]), ("filter by class", ["class", "a"])):
            found[f"{name}_ms"] = round(page.evaluate(TAKES, control))
        found["elements"] = page.evaluate("document.querySelectorAll('*').length")
        found["memory_mb"] = round(page.evaluate("performance.memory.usedJSHeapSize") / 1e6)
        assert not [url for url in asked if not url.startswith(("file:", "data:"))], "the page asked a host"
        browser.close()
    return found


def main() -> None:
    arguments = parser(__doc__, "jobs/report")
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    arguments.add_argument("--keep", type=Path, help="create the job's folder here and keep it")
    arguments.add_argument("--save", action="store_true", help="write the results to benchmarks/results")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as place:
        out = given.keep or Path(place) / "out"
        made(out, given.rows)
        started = time.perf_counter()
        page = report.write(out)
        found: dict[str, Any] = {
            "what": "report of a job",
            "rows": given.rows,
            "images": given.rows // len(METHODS),
            "seconds_to_write": round(time.perf_counter() - started, 1),
            "page_kb": round(page.stat().st_size / 1e3, 1),
            "files": len(list((out / "report_files").iterdir())),
            "files_mb": round(sum(each.stat().st_size for each in (out / "report_files").iterdir()) / 1e6, 1),
        }
        found |= seen(page, given.chromium)
    print(json.dumps(found, indent=1))
    if given.save:
        write(given.out or RESULTS / "jobs" / f"report-{kind(given.device)}.json", [found], given.device)


if __name__ == "__main__":
    main()
