"""The gallery's page: a card for each method, and the recipe from docs/gallery/METHOD.py that made its picture."""

from __future__ import annotations

from pathlib import Path

from fastviz.methods.registry import METHODS, Method
from tools.site.reference import linked

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "gallery"

FAMILIES = {
    "explain": "Which parts of the photograph support the class",
    "read": "What the network contains and responds to",
    "make": "Pictures that the network imagines",
}

HEAD = """# Gallery

Every method on the three photographs and textures that come with the package (CC0 and public domain), with the
[built-in network](../model-card.md) (20 classes, 64x64 pixels). Each picture links to the code that made it, as run by
`python tools/gallery.py`; it runs unchanged in a folder with `photos/` and `textures/` (the package's are in
`fastviz/models/data`). The explained classes are the predicted ones: espresso, missile, tabby cat.

How to interpret such pictures correctly: [reading a map](../explanation/reading-a-map.md).
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
        f'??? example "Code"\n\n    ```python\n'
        + "".join(f"    {line}\n" if line else "\n" for line in lines.rstrip().split("\n"))
        + "    ```\n"
    )
