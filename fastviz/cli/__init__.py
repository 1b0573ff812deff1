"""The command line, a file a family of commands; ``fastviz --help`` lists them."""

from fastviz.cli import demo, explain, lists, occlusion, texture
from fastviz.cli.common import app, main

__all__ = ["app", "demo", "explain", "lists", "main", "occlusion", "texture"]
