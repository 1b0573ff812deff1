"""Generates the reference's pages: the API in groups, the command line, the methods."""

from __future__ import annotations

import re
from functools import cache
from types import ModuleType

import typer.cli
import typer.main

import fastviz
from fastviz.cli import app
from fastviz.methods.registry import METHODS, Method

# Page → its title, and prefixes of the modules whose public names it lists.
GROUPS = {
    "attribution": ("Which parts of an image support a target", ["fastviz.methods.attribution"]),
    "inspection": ("What a network contains and responds to", ["fastviz.methods.inspection", "fastviz.vectors"]),
    "synthesis": ("Pictures that a network imagines", ["fastviz.methods.synthesis"]),
    "adversarial": ("Fooling images", ["fastviz.methods.adversarial"]),
    "optimize": ("Optimisation: steps, canvas, priors, transforms", ["fastviz.engine.optimize"]),
    "evaluation": ("Is a map any good?", ["fastviz.evaluation"]),
    "jobs": ("Jobs: many images, many methods", ["fastviz.jobs"]),
    "targets": ("Targets, and the registry of methods", ["fastviz.targets", "fastviz.methods.registry"]),
    "models": ("Models and their layers", ["fastviz.models", "fastviz.graph", "fastviz.execution", "fastviz._util"]),
    "images": ("Images", ["fastviz.images"]),
    "operators": ("Operators", ["fastviz.ops"]),
    "other-tools": ("Replacements for other tools", ["fastviz.accelerate", "fastviz.compat"]),
}

# Values do not know the module that they come from.
HOMES = {"METHODS": "fastviz.methods.registry", "Target": "fastviz.targets.selection"}

# A function with the same name as its module.
PLACES = {"fastviz.accelerate": "fastviz.accelerate.accelerate"}

# Modules whose names are listed besides those of fastviz itself, by the name that users write.
NAMESPACES = [fastviz.images, fastviz.evaluation, fastviz.jobs, fastviz.ops]
SHORT = {"fastviz.priors": fastviz.priors, "fastviz.transforms": fastviz.transforms, "fastviz.canvas": fastviz.canvas}


@cache
def public_names() -> dict[str, str]:
    """Public name, as users write it → module that it comes from; of two names for one object the shorter is used."""
    found: dict[str, str] = {}
    seen: set[int] = set()
    spaces = {"fastviz": fastviz, **{module.__name__: module for module in NAMESPACES}, **SHORT}
    for space, module in spaces.items():
        for name in module.__all__:
            each = getattr(module, name)
            if isinstance(each, ModuleType) or (callable(each) and id(each) in seen):
                continue
            seen.add(id(each))
            found[f"{space}.{name}"] = HOMES.get(name) or getattr(each, "__module__", "")
            if not found[f"{space}.{name}"].startswith("fastviz"):
                found[f"{space}.{name}"] = module.__name__
    return found


def api_pages() -> dict[str, str]:
    """Page → its text, with an instruction for mkdocstrings for each name."""
    pages = {}
    lines = ["# API\n", "Every public name after `import fastviz as fv`, grouped like the folders.\n"]
    rest = dict(public_names())
    for page, (title, homes) in GROUPS.items():
        names = [name for name, home in rest.items() if any(f"{home}.".startswith(f"{each}.") for each in homes)]
        for name in names:
            del rest[name]
        blocks = "".join(f"::: {PLACES.get(name, name)}\n\n" for name in sorted(names, key=str.lower))
        pages[f"reference/api/{page}.md"] = f"# {title}\n\n{blocks}"
        shown = ", ".join(f"[`{short(name)}`][{PLACES.get(name, name)}]" for name in sorted(names, key=str.lower))
        lines.append(f"**[{title}](api/{page}.md)**: {shown}\n")
    if rest:
        raise ValueError(f"GROUPS should have a page for {rest}")
    return {"reference/api.md": "\n".join(lines), **pages}


def short(name: str) -> str:
    return name.replace("fastviz.", "fv.", 1)


def command_line() -> str:
    """The commands with typer's descriptions."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="fastviz")
    text = typer.cli.get_docs_for_click(obj=command, ctx=context, name="fastviz")
    return text.replace("# `fastviz`", "# Command line", 1)


def linked(paper: str) -> str:
    """A paper in the registry, "authors year, address", as a link."""
    words, _, address = paper.rpartition(", ")
    return f"[{words}]({address})"


def methods() -> str:
    """A table with a row for each method: description, drawing, command, and paper."""
    lines = [
        "# Methods\n",
        "Each is a function of `fastviz` with a [picture](../gallery/index.md). The supported networks and tasks are "
        "listed under [what is supported](supported.md).\n",
        "| method | what it shows | drawn as | command | paper |",
        "| --- | --- | --- | --- | --- |",
        *map(_row, METHODS.values()),
    ]
    return "\n".join(lines) + "\n"


def _row(method: Method) -> str:
    link = f"[`{method.name}`][fastviz.{method.name}]"
    return f"| {link} | {method.summary} | {method.draws} | `fastviz {method.verb}` | {linked(method.paper)} |"


ROLE = re.compile(r":(?:func|class|data|attr|meth|mod|exc):`~?([^`]+)`")


def with_links(text: str) -> str:
    """A docstring in which Sphinx's roles are links if the reference has the target, and code otherwise."""

    def link(found: re.Match[str]) -> str:
        words = found[1]
        names = public_names()
        known = (words, f"fastviz.{words}", *(f"{space.__name__}.{words}" for space in NAMESPACES))
        target = next((name for name in known if name in names), None)
        return f"`{words}`" if target is None else f"[`{words}`][{PLACES.get(target, target)}]"

    return ROLE.sub(link, text)
