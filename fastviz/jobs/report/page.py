"""Pages from templates: all text escaped, written whole or not at all."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastviz._util.files import whole_file
from fastviz._util.output_folder import printable, remove
from fastviz.images import drawing
from fastviz.methods.registry import EXPLAINERS

if TYPE_CHECKING:
    import jinja2

__all__ = ["asset", "percent", "render", "rendered", "write_whole"]


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastviz.jobs"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": percent, "shown": printable, "url": _url}
    return environment


def rendered(template: str, **values: Any) -> bytes:
    """The page that ``template`` makes of ``values``, as UTF-8."""
    text = _environment().get_template(template).render(explainers=EXPLAINERS, legends=drawing.LEGENDS, **values)
    return text.encode("utf-8", "replace")


def render(path: Path, template: str, **values: Any) -> None:
    """Write the page that ``template`` makes of ``values``."""
    write_whole(path, rendered(template, **values))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, over what stands there."""
    if path.is_dir():
        remove(path)
    with whole_file(path) as file:
        file.write(content)


def asset(name: str) -> bytes:
    """A script or style sheet of the templates' folder; ``report.css`` and ``panel.css`` begin with what all share."""
    folder = Path(__file__).parents[1] / "templates"
    content = (folder / name).read_bytes()
    return (folder / "style.css").read_bytes() + content if name.endswith(".css") else content


def percent(probability: float) -> str:
    """A probability of 0 to 1 in words for people.

    >>> percent(0.874), percent(0.00004)
    ('87 %', '< 1 %')
    """
    return "< 1 %" if 0 <= probability < 0.01 else f"{100 * probability:.0f} %"


def _url(path: str) -> str:
    """A path as a page refers to it, by its bytes: it may hold some that are no UTF-8."""
    return quote(os.fsencode(path))
