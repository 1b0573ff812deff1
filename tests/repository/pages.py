"""Runs the code of pages, each in a process of its own that begins where everything is imported already.

Reads JSON, page → {"code", "folder"}, and writes page → what went wrong, or "". Its own process computes nothing, so
that those it forks have threads of their own.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

# What makes the pages quick: weights drawn at random in place of a download, one image of a large network, few steps.
QUICK = """
import functools
import fastviz
from fastviz.models.demo_network import DemoNetwork

torch = __import__("torch")
torch.manual_seed(0)
torch.set_num_threads(1)
load_model = fastviz.load_model
fastviz.load_model = lambda name, weights=None: load_model(name, weights=None)
load_images = fastviz.load_images
fastviz.load_images = lambda paths, model=None, **options: [
    part if model is None or isinstance(model, DemoNetwork) else part[:1]
    for part in load_images(paths, model=model, **options)
]
few = {"deletion": {"step": 0.5}, "insertion": {"step": 0.5}, "road": {"removed": (50,)}}
plain = fastviz.evaluate
fastviz.evaluate = lambda model, source, methods, measures: plain(
    model, source, methods, measures, options={name: few[name] for name in measures}, limit=1
)
for name in ("maximize", "invert", "fool"):
    setattr(fastviz, name, functools.partial(getattr(fastviz, name), steps=1))
for name, options in {**few, "parameter_randomisation": {"steps": 1}}.items():
    setattr(fastviz.evaluation, name, functools.partial(getattr(fastviz.evaluation, name), **options))
"""


def run(name: str, code: str, folder: str) -> str:
    """What went wrong with a page's code in ``folder``, or ``""``."""
    log = Path(folder, "log.txt")
    process = os.fork()
    if process:
        _, status = os.waitpid(process, 0)
        return log.read_text() if status else ""
    try:
        os.chdir(folder)
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        exec(QUICK, {})
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def main() -> None:
    for name in ("fastviz", "pandas", "sklearn.manifold", "timm", "torchvision"):
        importlib.import_module(name)
    pages = json.load(sys.stdin)
    json.dump({name: run(name, page["code"], page["folder"]) for name, page in pages.items()}, sys.stdout)


if __name__ == "__main__":
    main()
