"""Notebooks: runs the Markdown pages of docs/notebooks in a kernel, in a folder with the package's photographs."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
DATA = ROOT / "fastviz" / "models" / "data"
SECONDS = 600
"""Timeout of a cell in seconds."""


@dataclass(frozen=True)
class Executed:
    """An executed notebook: its page, and its files by name."""

    page: str
    files: dict[str, bytes | str]


def executed(source: Path) -> Executed:
    notebook = jupytext.read(source, fmt="md")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("photos", "textures"):
            (Path(folder) / name).symlink_to(DATA / name)
        NotebookClient(
            notebook, timeout=SECONDS, startup_timeout=SECONDS, resources={"metadata": {"path": folder}}
        ).execute()
    name = source.stem
    page, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": name, "output_files_dir": name})
    title, _, rest = page.partition("\n")
    download = f"\n[This page as a notebook]({name}.ipynb){{ download }}, with these results.\n"
    shown = {file: content for file, content in resources["outputs"].items() if f"({file})" in page}
    return Executed(f"{title}\n{download}{rest}", {f"{name}.ipynb": nbformat.writes(notebook), **shown})
