"""The public names and their signatures are those in api.txt, so that a change of them shows in review."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = Path(__file__).parent / "api.txt"


def current() -> list[str]:
    spec = importlib.util.spec_from_file_location("api", ROOT / "tools" / "api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[str] = module.lines()
    return found


def test_public_names_are_those_that_were_agreed_on() -> None:
    kept, found = KEPT.read_text().splitlines(), current()
    changes = list(difflib.unified_diff(kept, found, "api.txt", "fastviz", lineterm="", n=0))
    if changes:
        pytest.fail("the public API changed; `make api` renews tests/repository/api.txt:\n" + "\n".join(changes))


def test_every_module_that_users_open_is_listed() -> None:
    found = current()
    for name in ("fastviz.maximize(", "fastviz.images.read_image(", "fastviz.ops.gram(", "fastviz.compat.kornia."):
        assert any(line.startswith(name) for line in found), name
    assert not any(" at 0x" in line for line in found)
