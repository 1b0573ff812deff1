"""An extension of Griffe, which reads docstrings for mkdocstrings: ours as Markdown that it understands.

Sphinx's roles become links, examples code, and arguments that are explained together an entry each.
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
    """A docstring as the parser takes it."""
    text = TOGETHER.sub(lambda found: "\n".join(f"    {name}: {found[2]}" for name in found[1].split(", ")), text)
    text = NOTHING.sub(r"Errors are none: \1", text)
    parts = re.split(f"({EXAMPLE.pattern})", text, flags=re.MULTILINE)
    return "".join(f"```pycon\n{part}\n```" if part.startswith(">>> ") else with_links(part) for part in parts)


class OurDocstrings(griffe.Extension):
    """What :func:`markdown` makes of each docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each object that was read."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
