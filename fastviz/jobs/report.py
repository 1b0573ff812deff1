"""The pages that show a job when it is done, and the page of the demo."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image
from torch import Tensor

from fastviz._util.files import whole_file
from fastviz._util.output_folder import printable, remove, replace_stale
from fastviz.images import drawing, tensors
from fastviz.images.pillow import picture_of
from fastviz.jobs.contact_sheets import percent
from fastviz.jobs.results import Result, paged, read_results
from fastviz.methods.registry import EXPLAINERS

__all__ = ["PER_PAGE", "Scene", "Section", "demo_page", "pages", "render"]

PER_PAGE = 100
"""Photographs on an HTML page."""


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
    contents = paged(out, per_page)
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
    return replace_stale(out, written, "report*.html")


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
        drawn=lambda picture: _inline(picture_of(tensors.eight_bits(picture)), "PNG"),
        facts=facts,
    )
    return out / "index.html"


def _inline(picture: Image.Image, kind: str) -> str:
    """A picture as a ``data:`` URL."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
