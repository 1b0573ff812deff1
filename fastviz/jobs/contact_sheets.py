"""Contact sheets of a job: a row a photograph, a column a method."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image, ImageDraw, PngImagePlugin

from fastviz._util.files import whole_file
from fastviz._util.output_folder import remove, replace_stale
from fastviz.images import captions
from fastviz.jobs.results import SHEETS, Result, is_whole, paged

__all__ = ["CELL", "ROWS", "contact_sheets", "percent"]

CELL = 224
"""Width and height of a picture on a contact sheet, in pixels."""

ROWS = 16
"""Photographs on a contact sheet."""

_NOTE = "fastviz results"
"""The text in a contact sheet that says which results it shows."""

_GAP, _CAPTION, _HEADER = 6, 26, 34

_PAPER, _QUIET = (255, 255, 255), (110, 110, 120)


def percent(probability: float) -> str:
    """A probability of 0 to 1 in words for people.

    >>> percent(0.874), percent(0.00004)
    ('87 %', '< 1 %')
    """
    return "< 1 %" if 0 <= probability < 0.01 else f"{100 * probability:.0f} %"


def _named(result: Result) -> str:
    """What is explained, and what the network says instead if that is another class."""
    words = f"{result.class_name} {percent(result.probability)}"
    if result.predicted != result.target:
        words += f" (predicted: {result.predicted_class_name} {percent(result.predicted_probability)})"
    return words


def contact_sheets(out: str | os.PathLike[str], *, rows: int = ROWS) -> list[Path]:
    """Write the results in a job's folder as pictures: a row a photograph, the photograph first, a column a method.

    ``rows`` photographs a sheet: ``contact_sheet.png``, then ``contact_sheet_2.png`` and so on. Sheets of an earlier
    run that show the same results are left as they are, the others are replaced. Where a picture of the job cannot be
    read its place says so.

    Returns:
        The paths of the sheets; none if there are no results.

    Raises:
        OSError: a sheet cannot be written.
    """
    out = Path(out)
    written = []
    for number, page in enumerate(paged(out, rows), start=1):
        path = out / ("contact_sheet.png" if number == 1 else f"contact_sheet_{number}.png")
        shows = hashlib.sha256(
            json.dumps([[asdict(result) for result in group] for group in page]).encode()
        ).hexdigest()
        if _shown_by(path) != shows:
            sheet, whole = _sheet(out, page)
            note = PngImagePlugin.PngInfo()
            note.add_text(_NOTE, shows if whole else "")
            if path.is_dir():
                remove(path)
            with whole_file(path) as file:
                sheet.save(file, "PNG", pnginfo=note)
        written.append(path)
    return replace_stale(out, written, SHEETS)


def _shown_by(path: Path) -> str | None:
    """What a sheet of an earlier run says that it shows."""
    try:
        with Image.open(path, formats=("PNG",)) as sheet:
            return str(sheet.info.get(_NOTE)) if is_whole(path) else None
    except (OSError, ValueError, SyntaxError):
        return None


def _sheet(out: Path, page: Sequence[Sequence[Result]]) -> tuple[Image.Image, bool]:
    """One contact sheet, and whether it lacks no picture: a header with the names of the methods, then a caption and
    pictures for each photograph.
    """
    whole = True
    columns = ["photograph", *(result.method.replace("_", " ") for result in page[0])]
    step, row = CELL + _GAP, _CAPTION + CELL + _GAP
    sheet = Image.new("RGB", (_GAP + step * len(columns), _HEADER + row * len(page) + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        captions.write(pen, (_GAP + step * column, _HEADER // 2), title, CELL, size=18)
    for line, group in enumerate(page):
        top = _HEADER + row * line
        pen.line([(_GAP, top), (sheet.width - _GAP, top)], fill=(215, 215, 220))
        middle = top + _CAPTION // 2
        end = captions.write(pen, (_GAP, middle), group[0].file, step * len(columns) // 2)
        captions.write(pen, (end + 14, middle), _named(group[0]), sheet.width - end - 14 - _GAP, ink=_QUIET)
        for column, path in enumerate([group[0].photo, *(result.overlay for result in group)]):
            left = _GAP + step * column
            try:
                with Image.open(out / path) as picture:
                    fitted = picture.convert("RGB")
            except OSError:  # gone, or damaged, since the line was written
                captions.write(pen, (left, top + _CAPTION + CELL // 2), "cannot be read", CELL, ink=_QUIET)
                whole = False
                continue
            fitted.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
            left += (CELL - fitted.width) // 2
            sheet.paste(fitted, (left, top + _CAPTION + (CELL - fitted.height) // 2))
    return sheet, whole
