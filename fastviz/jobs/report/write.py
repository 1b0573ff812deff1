"""The report of a job as files that need no server: a page, scripts with its lines, and sheets of pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from fastviz._util.output_folder import remove, replace_stale
from fastviz.jobs.report.distributions import Distributions
from fastviz.jobs.report.lines import Line, block, lines_of
from fastviz.jobs.report.page import asset, render, write_whole
from fastviz.jobs.report.pictures import ACROSS, PER_SHEET, Sheets
from fastviz.jobs.tables.results import open as open_results

__all__ = ["FILES", "PER_BLOCK", "facts_of", "settings_of", "sheets_for", "write"]

FILES = "report_files"
"""The folder beside the page with the page's other files."""

PER_BLOCK = 4096
"""Lines in a script; a multiple of the lines in a sheet."""

_LARGE, _SMALL, _FEW = 224, 112, 6000
"""Longer side of pictures in pixels if there are few and if there are many, and the largest number that is few."""


def write(out: str | os.PathLike[str]) -> Path:
    """Write the report of a job: ``report.html`` and, beside it, the folder ``report_files`` with its data.

    The page opens in a browser without a server and loads nothing from other hosts. An earlier report is replaced. Only
    a few images are in memory at a time.

    Args:
        out: the folder of a job, which may still be running.

    Returns:
        The path of the page.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the folder holds no job, or is in S3.
        OSError: a file cannot be written.
    """
    results = open_results(out)
    folder = results.out
    if not isinstance(folder, Path):
        raise ValueError(f"out should be a folder on this machine, because the page is written there, got {folder}")
    home = folder / FILES
    if home.exists() and not home.is_dir():
        remove(home)
    home.mkdir(exist_ok=True)
    parts = results.parts
    sheets = sheets_for(results.job, len(results) + results.count(ok=True))
    settings = settings_of(results.job, sheets)
    counted = Distributions(sheets.methods)
    written = []
    every = (line for part in parts for line in lines_of(part))
    while lines := list(islice(every, PER_BLOCK)):
        start = counted.lines
        counted.add(lines)
        for name, content in _pictures(lines, start, sheets, settings):
            write_whole(home / name, content)
            written.append(home / name)
        content = json.dumps(block(lines, start, sheets.methods), separators=(",", ":")).encode()
        written.append(home / f"lines-{start // PER_BLOCK:05d}.js")
        write_whole(written[-1], b"fastviz.add(" + content + b");\n")
    for name in ("report.js", "report.css"):
        written.append(home / name)
        write_whole(written[-1], asset(name))
    replace_stale(home, written, "*")
    settings |= {"lines": counted.lines, "blocks": -(-counted.lines // PER_BLOCK), "distributions": counted.values()}
    page = folder / "report.html"
    render(
        page,
        "report.html",
        page=settings,
        facts=facts_of(results.job),
        title=f"What {results.job['settings']['model']} looks at",
        sources="'self' file:",
    )
    replace_stale(folder, [page], "report_*.html")
    return page


def _pictures(
    lines: Sequence[Line], start: int, sheets: Sheets, settings: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Name and content of each sheet, in the order of the lines, so that each part is read only once."""
    for first in range(0, len(lines), PER_SHEET):
        some = lines[first : first + PER_SHEET]
        if settings["photos"]:
            yield f"photos-{(start + first) // PER_SHEET:06d}.jpg", sheets.photos(some)
        for place in range(0, len(some) if settings["maps"] else 0, sheets.lines_per_sheet):
            number = (start + first + place) // sheets.lines_per_sheet
            yield f"maps-{number:06d}.jpg", sheets.maps(some[place : place + sheets.lines_per_sheet])


def sheets_for(job: Mapping[str, Any], pictures: int | None = None) -> Sheets:
    """The :class:`Sheets` for a job with this ``job.json``; pictures are large if there are few of them."""
    known = job["settings"]["preprocessing"]["size"]
    size = known or (1, 1)
    longest = _LARGE if pictures is not None and pictures <= _FEW else _SMALL
    height, width = (max(16, 16 * round(longest * side / max(size) / 16)) for side in size)
    return Sheets(list(job["settings"]["methods"]), (height, width), known and known[1])


def settings_of(job: Mapping[str, Any], sheets: Sheets) -> dict[str, Any]:
    """A job's settings for the page's script, as JSON values."""
    settings = job["settings"]
    return {
        "live": False,
        "methods": sheets.methods,
        "cell": list(sheets.cell),
        "photos": settings["thumbnails"],
        "maps": settings["maps"] != "none" or settings["overlays"],
        "per_sheet": PER_SHEET,
        "across": ACROSS,
        "lines_per_sheet": sheets.lines_per_sheet,
    }


def facts_of(job: Mapping[str, Any]) -> dict[str, str]:
    """The facts about a job at the top of a page."""
    settings = job["settings"]
    facts = {"Network": settings["model"], "Weights": job["weights"] or "", "Target": settings["target"]}
    facts |= {
        method.replace("_", " "): ", ".join(f"{name} {value}" for name, value in options.items())
        for method, options in settings["methods"].items()
    }
    return {name: str(value) for name, value in facts.items() if value}
