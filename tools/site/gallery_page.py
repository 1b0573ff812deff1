"""The page of the gallery: a card a method, and below the recipe that made its picture, from docs/gallery/METHOD.py."""

from __future__ import annotations

from pathlib import Path

from fastviz.methods.registry import METHODS, Method
from tools.site.reference import linked

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "gallery"

FAMILIES = {
    "explain": "What in the photograph speaks for the class",
    "read": "What the network holds and responds to",
    "make": "Pictures that the network imagines",
}

HEAD = """# Gallery

Every method on the three photographs and textures that ship with the package (CC0 and public domain), by the
[built-in network](../model-card.md) of 20 classes and 64x64 pixels. Each picture leads to the lines that made it: they
are what `python tools/gallery.py` ran, and run as they stand in a folder with `photos/` and `textures/` (those of the
package are in `fastviz/models/data`). The classes explained are those that the network thinks of first: espresso,
missile, tabby cat.

How to read such pictures without fooling yourself: [reading a map](../explanation/reading-a-map.md).
"""


def page() -> str:
    parts = [HEAD]
    for family, title in FAMILIES.items():
        methods = [method for method in METHODS.values() if method.family == family]
        parts += [f"## {title}\n", _cards(methods), *map(_recipe, methods)]
    return "\n".join(parts)


def _cards(methods: list[Method]) -> str:
    cards = [
        f'<a href="#{method.name}"><img src="{method.name}.webp" alt="{method.summary}" loading="lazy">'
        f"{method.name.replace('_', ' ')}</a>"
        for method in methods
    ]
    return '<div class="pictures">\n' + "\n".join(cards) + "\n</div>\n"


def _recipe(method: Method) -> str:
    code = (RECIPES / f"{method.name}.py").read_text()
    title, _, lines = code.partition("\n\n")
    words = title.strip('"')
    return (
        f"### {method.name} {{ #{method.name} }}\n\n{words}\n\n"
        f"![{method.summary}]({method.name}.webp)\n\n"
        f"[`fv.{method.name}`][fastviz.{method.name}]; {linked(method.paper)}\n\n"
        f'??? example "The lines that made it"\n\n    ```python\n'
        + "".join(f"    {line}\n" if line else "\n" for line in lines.rstrip().split("\n"))
        + "    ```\n"
    )
