"""An extension of Griffe that converts our docstrings into Markdown for mkdocstrings.

Sphinx's roles become links, examples become code, and arguments that are explained together get one entry each.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

from tools.site.reference import with_links

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
TOGETHER = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {8}.*)*)", re.MULTILINE)
NOTHING = re.compile(r"^Raises:\n    (Nothing.*)$", re.MULTILINE)


def markdown(text: str) -> str:
    """A docstring in the parser's format."""
    text = TOGETHER.sub(lambda found: "\n".join(f"    {name}: {found[2]}" for name in found[1].split(", ")), text)
    text = NOTHING.sub(r"Errors are none: \1", text)
    parts = re.split(f"({EXAMPLE.pattern})", text, flags=re.MULTILINE)
    return "".join(f"```pycon\n{part}\n```" if part.startswith(">>> ") else with_links(part) for part in parts)


class OurDocstrings(griffe.Extension):
    """Applies :func:`markdown` to each docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by Griffe for each object."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
