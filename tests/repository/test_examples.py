"""The code that the README, the docs and the docstrings show runs."""

from __future__ import annotations

import doctest
import importlib
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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


# What makes the snippets quick: weights drawn at random in place of a download, one image, and few steps.
QUICK = """
import functools
import fastviz

torch = __import__("torch")
torch.manual_seed(0)
load_model = fastviz.load_model
fastviz.load_model = lambda name, weights=None: load_model(name, weights=None)
load_images = fastviz.load_images
fastviz.load_images = lambda paths, model: [part[:1] for part in load_images(paths, model=model)]
few = {"deletion": {"step": 0.5}, "insertion": {"step": 0.5}, "road": {"removed": (50,)}}
quick = {"maximize": {"steps": 1}, "invert": {"steps": 1}, "fool": {"steps": 1}}
quick["evaluate"] = {"options": few, "limit": 1}
for name, options in quick.items():
    setattr(fastviz, name, functools.partial(getattr(fastviz, name), **options))
for name, options in {**few, "parameter_randomisation": {"steps": 1}}.items():
    setattr(fastviz.evaluation, name, functools.partial(getattr(fastviz.evaluation, name), **options))
"""


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page, "python")], ids=lambda page: page.name)
def test_python_snippets(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("sklearn")
    photos = shutil.copytree(ROOT / "fastviz" / "models" / "data" / "photos", tmp_path / "photos")
    for photo in list(photos.glob("*.jpg")):  # t-SNE and the neighbours want more than the three
        for number in range(2):
            shutil.copy(photo, photos / f"{number}-{photo.name}")
    shown = snippets(page, "python")
    script = tmp_path / "snippets.py"
    script.write_text("\n".join([QUICK, *shown]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script], capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def commands() -> list[str]:
    lines = [line for page in PAGES for block in snippets(page, "sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("fastviz ")]


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
