"""Prints the public names of fastviz with their signatures, one per line; `make api` writes the list for the tests."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import fastviz
import fastviz.compat

OPENED = ("images", "ops", "priors", "transforms", "canvas", "animation")
"""The modules that are attributes of ``fastviz``."""


def modules() -> Iterator[tuple[str, ModuleType]]:
    """The public modules, by the names that users write."""
    yield "fastviz", fastviz
    for name in OPENED:
        yield f"fastviz.{name}", getattr(fastviz, name)
    for found in pkgutil.walk_packages(fastviz.compat.__path__, "fastviz.compat."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield found.name, importlib.import_module(found.name)


def lines() -> list[str]:
    """A line for each public name, ordered by module and then alphabetically."""
    found = []
    for place, module in modules():
        for name in sorted(module.__all__):
            found += _described(f"{place}.{name}", getattr(module, name))
    return found


def _described(name: str, value: object) -> list[str]:
    """The line of a name; for a class also the lines of its public attributes and methods."""
    if isinstance(value, ModuleType):
        return [f"{name}: module"]
    if isinstance(value, type):
        return [f"{name}{_signature(value)}", *_members(name, value)]
    if inspect.isroutine(value):
        return [f"{name}{_signature(value)}"]
    return [f"{name}: {type(value).__name__}"]


def _members(name: str, cls: type) -> list[str]:
    """The public methods and properties that a class defines, or inherits from another class of fastviz."""
    found = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("fastviz"):
            found |= {key: value for key, value in vars(base).items() if not key.startswith("_")}
    described = []
    for key, value in sorted(found.items()):
        if isinstance(value, property):
            described.append(f"{name}.{key}: {_word(inspect.signature(value.fget).return_annotation)}")  # type: ignore[arg-type]
        elif inspect.isroutine(value):
            described.append(f"{name}.{key}{_signature(value)}")
    return described


def _signature(value: Any) -> str:
    """``(x: Tensor, *, k: int = 3) -> Tensor``; annotations without quotes, defaults without addresses."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):  # classes written in C have no signature
        return "(...)"
    parts = []
    kind = None
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and kind not in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL):
            parts.append("*")
        kind = parameter.kind
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(kind, "")
        text = f"{stars}{parameter.name}"
        if parameter.annotation is not parameter.empty:
            text += f": {_word(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        parts.append(text)
    returned = signature.return_annotation
    arrow = "" if returned is signature.empty else f" -> {_word(returned)}"
    return f"({', '.join(parts)}){arrow}"


def _word(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(value: object) -> str:
    """A default value as text; only the type's name if its ``repr`` contains an address."""
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


if __name__ == "__main__":
    print("\n".join(lines()))
