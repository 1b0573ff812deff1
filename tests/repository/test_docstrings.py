"""What the docstring of every public name holds: its arguments, results, errors, and an example that runs.

That the examples run is tested in ``test_examples``.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from types import FunctionType

import pytest

import fastviz as fv

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (fv, fv.images, fv.evaluation, fv.jobs, fv.models, fv.ops)
    for name in module.__all__
}
FUNCTIONS = {name: each for name, each in PUBLIC.items() if isinstance(each, FunctionType)}
CLASSES = {name: each for name, each in PUBLIC.items() if inspect.isclass(each)}

POINTS = re.compile(r"\b[Aa]s\s+(in\s+)?:(func|class|data):")
"""What is explained once, at its home, is pointed at elsewhere."""


def words(each: object) -> str:
    return inspect.getdoc(each) or ""


def sections(text: str) -> set[str]:
    return set(re.findall(r"^(Args|Attributes|Returns|Yields|Raises):$", text, re.MULTILINE))


def unexplained(text: str, names: list[str]) -> list[str]:
    """The ``names`` that no entry of the docstring begins with."""
    heads = re.findall(r"^ {4}([\w, ]+):", text, re.MULTILINE)
    known = {name.strip() for head in heads for name in head.split(",")}
    return [name for name in names if name not in known]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function = FUNCTIONS[name]
    text = words(function)
    signature = inspect.signature(function)
    assert ">>> " in text, "an example"
    assert "Raises" in sections(text) or re.search(r"\b[Ee]rrors\b.*?\sas\s+in\s+:func:", text, re.DOTALL)
    if str(signature.return_annotation) not in ("None", "<class 'NoneType'>"):
        assert sections(text) & {"Returns", "Yields"}, "what comes back"
    if not POINTS.search(text):
        assert not unexplained(text, list(signature.parameters)), "arguments"


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name: str) -> None:
    kind = CLASSES[name]
    text = words(kind)
    assert text, "a docstring"
    if issubclass(kind, Warning | Exception):
        return
    assert ">>> " in text, "an example"
    if dataclasses.is_dataclass(kind):
        fields = [field.name for field in dataclasses.fields(kind) if not field.name.startswith("_")]
        assert not unexplained(text, fields), "attributes"
