"""The code that the README, the docs and the docstrings show runs."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import fastviz
from fastviz.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


MODULES = ["fastviz"] + [
    module.name
    for module in pkgutil.walk_packages(fastviz.__path__, "fastviz.")
    # these do something when they are imported, those are no Python
    if not module.name.endswith(("__main__", "._on_import", "._cpu", "._cuda"))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0, "see the captured output"


SHOWN = {str(page.relative_to(ROOT)): "\n".join(snippets(page, "python")) for page in PAGES}
SHOWN = {name: code for name, code in SHOWN.items() if code}


@pytest.fixture(scope="module")
def went_wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Page → what went wrong with its Python snippets, run one after the other beside a folder of photographs."""
    for needed in ("pandas", "sklearn", "timm", "torchvision"):
        pytest.importorskip(needed)
    pages = {}
    for name, code in SHOWN.items():
        folder = tmp_path_factory.mktemp("page")
        photos = shutil.copytree(ROOT / "fastviz" / "models" / "data" / "photos", folder / "photos")
        if "fv.tsne(" in code or "fv.neighbours(" in code:  # they want more than the three
            for photo in list(photos.glob("*.jpg")):
                for number in range(2):
                    shutil.copy(photo, photos / f"{number}-{photo.name}")
        pages[name] = {"code": code, "folder": str(folder)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).with_name("pages.py")], input=json.dumps(pages),
        stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SHOWN)
def test_python_snippets(name: str, went_wrong: dict[str, str]) -> None:
    assert not went_wrong[name], went_wrong[name]


def commands() -> list[str]:
    lines = [line for page in PAGES for block in snippets(page, "sh") for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("fastviz ")})


@pytest.mark.parametrize("line", commands())
def test_commands_are_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command line that is shown has a command and options that there are; what they do is tested elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "painting.jpg"):
        (tmp_path / name).touch()
    _, command, *arguments = shlex.split(line, comments=True)
    group = typer.main.get_command(app)
    group.commands[command].make_context(command, arguments)
