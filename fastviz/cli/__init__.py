"""The command line, one file per family of commands; ``fastviz --help`` lists them."""

from fastviz.cli import (
    array,
    compare,
    demo,
    dream,
    embedding,
    fool,
    invert,
    lists,
    maximize,
    occlusion,
    patches,
    reading,
    run,
    segment,
    serve,
    style,
    texture,
)
from fastviz.cli.common import app, main

__all__ = [
    "app",
    "array",
    "compare",
    "demo",
    "dream",
    "embedding",
    "fool",
    "invert",
    "lists",
    "main",
    "maximize",
    "occlusion",
    "patches",
    "reading",
    "run",
    "segment",
    "serve",
    "style",
    "texture",
]
