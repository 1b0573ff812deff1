"""The pages that show a job when it is done, and the page of the demo."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastviz._util.files import whole_file
from fastviz._util.output_folder import printable, remove, replace_stale
from fastviz.images import drawing, tensors
from fastviz.images.pillow import picture_of
from fastviz.jobs.tables.results import Results
from fastviz.jobs.tables.results import open as open_results
from fastviz.jobs.tables.schema import decode_map
from fastviz.methods.registry import EXPLAINERS

__all__ = ["PER_PAGE", "Scene", "Section", "demo_page", "drawn", "pages", "percent", "render"]

PER_PAGE = 50
"""Images on an HTML page, whose pictures are inside of it."""


def pages(out: str | os.PathLike[str], *, per_page: int = PER_PAGE) -> list[Path]:
    """Write the results in a job's folder as HTML: ``report.html``, then ``report_2.html`` and so on.

    Pictures are inside of the pages: the thumbnails and overlays that the job kept; a map without an overlay is drawn
    over the thumbnail. Failures stand on the first page. Pages of an earlier time are replaced.

    Args:
        out: the folder of a job, which may still run.
        per_page: images on a page.

    Returns:
        The paths of the pages, at least one.

    Raises:
        ValueError: the folder holds no job.
        OSError: a page cannot be written.
    """
    results = open_results(out)
    settings = results.job["settings"]
    failures = list(results.failures())
    count = results.count(ok=True)
    names = ["report.html", *(f"report_{number}.html" for number in range(2, 1 + math.ceil(count / per_page)))]
    contents = _shown(results)
    written = []
    for name in names:
        render(
            results.out / name,
            "report.html",
            title=f"What {settings['model']} looks at",
            facts=_facts(results.job),
            failures=failures,
            groups=list(islice(contents, per_page)),
            methods=list(settings["methods"]),
            names=names,
            here=name,
        )
        written.append(results.out / name)
    return replace_stale(results.out, written, "report*.html")


def _facts(job: Mapping[str, Any]) -> dict[str, str]:
    settings = job["settings"]
    facts = {"Network": settings["model"], "Weights": job["weights"] or "", "Target": settings["target"]}
    facts |= {
        method: ", ".join(f"{name} {value}" for name, value in options.items())
        for method, options in settings["methods"].items()
    }
    return {name: str(value) for name, value in facts.items() if value}


@dataclass(frozen=True)
class Shown:
    """An image on a page: its first row, the thumbnail and a picture a method and target as ``data:`` URLs."""

    row: Mapping[str, Any]
    photo: str
    pictures: list[tuple[str, str]]


def _shown(results: Results) -> Iterator[Shown]:
    """The images that did not fail, in order."""
    for rows in results.images(results.schema.names if results.parts else []):
        if any(row["status"] != "ok" for row in rows):
            continue
        thumbnail = rows[0]["thumbnail"]
        pictures = []
        for row in rows:
            name = row["method"].replace("_", " ")
            if len({each["target"] for each in rows}) > 1:
                name += f": {row['target_name']}"
            picture = row["overlay"] or drawn(row, thumbnail)
            if picture is not None:
                pictures.append((name, _url_of(picture, "jpeg")))
        yield Shown(rows[0], "" if thumbnail is None else _url_of(thumbnail, "jpeg"), pictures)


def drawn(row: Mapping[str, Any], thumbnail: bytes | None, kind: str = "JPEG") -> bytes | None:
    """The map of a row over its thumbnail, or over nothing, as JPEG or PNG; None where there is no map."""
    if row.get("map") is None:
        return None
    found = torch.from_numpy(decode_map(row["map"], row["map_shape"], row["map_scale"], row["map_zero"]).copy())
    if thumbnail is None:
        photo = torch.full((3, *found.shape[-2:]), 0.5)
    else:
        with Image.open(io.BytesIO(thumbnail)) as picture:
            photo = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
    coarse = 2 * found.shape[-1] < photo.shape[-1] and found.shape[-1] <= 32
    shown = picture_of(tensors.eight_bits(drawing.draw(EXPLAINERS[row["method"]].draws, found, photo, coarse=coarse)))
    buffer = io.BytesIO()
    shown.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


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


def percent(probability: float) -> str:
    """A probability of 0 to 1 in words for people.

    >>> percent(0.874), percent(0.00004)
    ('87 %', '< 1 %')
    """
    return "< 1 %" if 0 <= probability < 0.01 else f"{100 * probability:.0f} %"


def _url(path: str) -> str:
    """A path as a page refers to it, by its bytes: it may hold some that are no UTF-8."""
    return quote(os.fsencode(path))


@dataclass(frozen=True)
class Scene:
    """A photograph of the demo.

    Attributes:
        name: of its file.
        photo: what the network saw, [3, H, W] in 0 to 1.
        overlays: method → its picture, as JPEG.
        guesses: the most probable classes with their probabilities, the first one first.
    """

    name: str
    photo: Tensor
    overlays: Mapping[str, bytes]
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
    render(
        out / "index.html",
        "demo.html",
        scenes=scenes,
        unfit=unfit,
        sections=sections,
        jpeg=lambda content: _url_of(content, "jpeg"),
        photo=lambda picture: _inline(picture_of(tensors.eight_bits(picture)), "JPEG"),
        drawn=lambda picture: _inline(picture_of(tensors.eight_bits(picture)), "PNG"),
        facts=facts,
    )
    return out / "index.html"


def _inline(picture: Image.Image, kind: str) -> str:
    """A picture as a ``data:`` URL."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {}))
    return _url_of(buffer.getvalue(), kind.lower())


def _url_of(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
