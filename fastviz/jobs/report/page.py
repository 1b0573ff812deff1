"""Pages from templates. All text is escaped, and files are written atomically."""

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
    """The page from ``template`` and ``values``, as UTF-8."""
    text = _environment().get_template(template).render(explainers=EXPLAINERS, legends=drawing.LEGENDS, **values)
    return text.encode("utf-8", "replace")


def render(path: Path, template: str, **values: Any) -> None:
    """Write the page from ``template`` and ``values``."""
    write_whole(path, rendered(template, **values))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, replacing anything at ``path``."""
    if path.is_dir():
        remove(path)
    with whole_file(path) as file:
        file.write(content)


def asset(name: str) -> bytes:
    """A script or style sheet from the templates' folder; style sheets begin with the shared ``style.css``."""
    folder = Path(__file__).parents[1] / "templates"
    content = (folder / name).read_bytes()
    return (folder / "style.css").read_bytes() + content if name.endswith(".css") else content


def percent(probability: float) -> str:
    """A probability in 0 to 1 as text.

    >>> percent(0.874), percent(0.00004)
    ('87 %', '< 1 %')
    """
    return "< 1 %" if 0 <= probability < 0.01 else f"{100 * probability:.0f} %"


def _url(path: str) -> str:
    """A path as a relative URL of its bytes, which need not be UTF-8."""
    return quote(os.fsencode(path))
