"""What a person looks at when a job is done: contact sheets, HTML pages, and the page of the demo."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin
from torch import Tensor

from fastviz._util.files import whole_file
from fastviz._util.output_folder import printable, remove
from fastviz.images import captions, drawing
from fastviz.jobs.folder import SHEETS, Result, is_whole, read_results
from fastviz.methods import EXPLAINERS

__all__ = ["Scene", "Section", "contact_sheets", "demo_page", "pages", "percent", "render"]

CELL = 224
"""Width and height of a picture on a contact sheet, in pixels."""
ROWS = 16
"""Photographs on a contact sheet."""
PER_PAGE = 100
"""Photographs on an HTML page."""

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


def _pages_of(out: Path, size: int) -> Iterator[list[list[Result]]]:
    """The results in ``out``, ``size`` photographs at a time."""
    groups = read_results(out)
    while page := list(islice(groups, size)):
        yield page


def _replace(out: Path, written: Sequence[Path], stale: str) -> list[Path]:
    """``written``, after removing older files of the pattern ``stale`` that are not among them."""
    for old in set(out.glob(stale)) - set(written):
        remove(old)
    return list(written)


# --------------------------------------------------------------------------------------------- contact sheets


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
    for number, page in enumerate(_pages_of(out, rows), start=1):
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
    return _replace(out, written, SHEETS)


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


# -------------------------------------------------------------------------------------------------- HTML pages


def pages(
    out: str | os.PathLike[str],
    *,
    title: str,
    facts: Mapping[str, str],
    failures: Sequence[tuple[str, str]] = (),
    per_page: int = PER_PAGE,
) -> list[Path]:
    """Write the results in a job's folder as HTML: ``report.html``, then ``report_2.html`` and so on.

    The pages refer to the job's pictures beside them. ``facts`` (name → value) and ``failures`` (file, reason) stand on
    the first. Pages of an earlier run are replaced.

    Returns:
        The paths of the pages, at least one.

    Raises:
        OSError: a page cannot be written.
    """
    out = Path(out)
    photographs = sum(1 for _ in read_results(out))
    names = ["report.html" if number == 1 else f"report_{number}.html" for number in range(1, 2 + photographs)]
    names = names[: max(1, math.ceil(photographs / per_page))]
    written = []
    contents = _pages_of(out, per_page)
    for name in names:
        path = out / name
        render(
            path,
            "report.html",
            title=title,
            facts=facts,
            failures=failures,
            groups=next(contents, []),
            photographs=photographs,
            names=names,
            here=name,
        )
        written.append(path)
    return _replace(out, written, "report*.html")


def render(path: Path, template: str, **values: Any) -> None:
    """Write the page that ``template`` makes of ``values``."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastviz.jobs"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": percent, "shown": printable, "url": _url}
    text = environment.get_template(template).render(explainers=EXPLAINERS, legends=drawing.LEGENDS, **values)
    if path.is_dir():
        remove(path)
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "replace"))


def _url(path: str) -> str:
    """A path as a page refers to it, by its bytes: it may hold some that are no UTF-8."""
    return quote(os.fsencode(path))


# ---------------------------------------------------------------------------------------------------- the demo


@dataclass(frozen=True)
class Scene:
    """A photograph of the demo: its results, one a method, and the most probable classes, the first one first."""

    results: list[Result]
    guesses: list[tuple[str, float]]


@dataclass(frozen=True)
class Section:
    """A part of the demo's page below the photographs.

    Attributes:
        title: its heading.
        text: one or two sentences: what one sees.
        pictures: caption (may be empty) and picture [3, H, W] in 0 to 1, side by side where they fit.
        paper: short citation and link, or empty.
        pixelated: enlarge the pictures without smoothing, for small ones whose pixels matter.
    """

    title: str
    text: str
    pictures: Sequence[tuple[str, Tensor]]
    paper: str = ""
    pixelated: bool = False


def demo_page(
    out: str | os.PathLike[str],
    scenes: Sequence[Scene],
    *,
    unfit: Mapping[str, str],
    sections: Sequence[Section],
    facts: Mapping[str, str],
) -> Path:
    """Write ``index.html``: the demo's pictures, a row a method, in one file that can be sent around.

    Args:
        out: the folder of the demo's job.
        scenes: its photographs.
        unfit: methods that do not suit the network → why.
        sections: what follows below the photographs.
        facts: name → value, for the foot of the page.

    Returns:
        The path of the page.
    """
    out = Path(out)

    def inline(path: str) -> str:
        with Image.open(out / path) as picture:
            return _inline(picture.convert("RGB"), "JPEG")

    render(
        out / "index.html",
        "demo.html",
        scenes=scenes,
        unfit=unfit,
        inline=inline,
        sections=sections,
        drawn=lambda picture: _inline(_to_pil(picture), "PNG"),
        facts=facts,
    )
    return out / "index.html"


def _to_pil(picture: Tensor) -> Image.Image:
    """A picture [3, H, W] in 0 to 1 as PIL has it."""
    values = (picture.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(values))


def _inline(picture: Image.Image, kind: str) -> str:
    """A picture as a ``data:`` URL."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
