"""The site of docs/ before it is built: every page has its place, links lead somewhere, messages and pictures are real.

`make docs` builds it, runs the notebooks and follows the links of the built pages.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from fastviz.methods.registry import METHODS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page for page in sorted(DOCS.rglob("*.md"))}
GALLERY = DOCS / "gallery"
LIMIT_BYTES = 3_000_000
"""All pictures of the gallery together."""

# hooks.py makes these when the site is built.
MADE = re.compile(r"gallery/index|reference/(api|command-line|methods|changelog|contributing|security)")


class Loader(yaml.SafeLoader):
    """Knows MkDocs' own tags."""


Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
SETTINGS = yaml.load((ROOT / "tools" / "site" / "mkdocs.yml").read_text(), Loader)


def places(entry: object) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    return [place for each in (entry.values() if isinstance(entry, dict) else entry) for place in places(each)]


def test_every_page_has_its_place_in_the_navigation():
    listed = places(SETTINGS["nav"])
    assert len(listed) == len(set(listed))
    assert {place for place in listed if not MADE.match(place)} == set(PAGES)


def slug(heading: str) -> str:
    """The anchor of a heading, as Python-Markdown's table of contents makes it."""
    words = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"[-\s]+", "-", words)


def anchors(text: str) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    text = PAGES[name].read_text()
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        address, _, anchor = link.partition("#")
        there = (PAGES[name].parent / address).resolve() if address else PAGES[name]
        if MADE.match(there.relative_to(DOCS).as_posix()) or there.name == "gains.svg":
            continue
        assert there.exists(), link
        if anchor:
            assert anchor in anchors(there.read_text()), link


def test_every_method_has_a_recipe_and_its_picture():
    assert {path.stem for path in GALLERY.glob("*.py")} == set(METHODS)
    pictures = list(GALLERY.glob("*.webp"))
    assert {path.stem for path in pictures} == set(METHODS), "run `make gallery`"
    assert sum(path.stat().st_size for path in pictures) < LIMIT_BYTES


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_calls_its_method_and_saves_its_picture(name):
    """That it runs is seen when `make gallery` draws it; here that it shows what it says."""
    called = {node.func.attr for node in ast.walk(ast.parse((GALLERY / f"{name}.py").read_text()))
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}  # fmt: skip
    assert called & {name, {"invert": "invert_all"}.get(name, name)}
    assert f'"{name}.png"' in (GALLERY / f"{name}.py").read_text()


GAP = "…"


def messages() -> set[str]:
    """Every text in the package but docstrings, with a gap where a value is put in."""
    found = set()
    for path in (ROOT / "fastviz").rglob("*.py"):
        tree = ast.parse(path.read_text())
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in alone:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


MESSAGES = messages()
KEYS = re.findall(r"^### `(.+)`$", PAGES["troubleshooting.md"].read_text(), re.MULTILINE)


def test_the_page_of_messages_has_keys():
    assert len(KEYS) == len(set(KEYS)) > 30


@pytest.mark.parametrize("key", KEYS)
def test_the_code_can_print_each_message(key):
    """The fixed parts of the key stand in one text of the code, in this order, with values where the key has gaps."""
    parts = [re.escape(part) for part in key.split(GAP)]
    assert max(len(part.strip()) for part in key.split(GAP)) >= 10, "a key that says something"
    pattern = re.compile(f"(?:.|\n)*{GAP}(?:.|\n)*".join(part for part in parts if part.strip()))
    assert any(pattern.search(message) for message in MESSAGES), key


def test_a_message_that_nothing_prints_is_found():
    with pytest.raises(AssertionError):
        test_the_code_can_print_each_message("the model is a … of another planet")


def test_what_is_generated_holds_every_method_and_name():
    """The pages that the build makes: a place for each public name, a card for each method, each command."""
    sys.path.insert(0, str(ROOT))
    from tools.site import gallery_page, reference

    pages = reference.api_pages()
    text = "\n".join(pages.values())
    shown = {reference.PLACES.get(name, name) for name in reference.public_names()}
    assert set(re.findall(r"^::: (\S+)$", text, re.MULTILINE)) == shown
    page = gallery_page.page()
    assert all(f'href="#{name}"' in page and f"{{ #{name} }}" in page for name in METHODS)
    assert "fastviz compare" in reference.command_line()
