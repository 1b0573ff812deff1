"""Accelerate a tool in the moment in which somebody imports it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from fastviz.accelerate import TOOLS, accelerate, package

__all__ = ["accelerate_on_import"]


class _Watcher(MetaPathFinder):
    """Finds nothing itself; has loaders call :func:`accelerate` when a tool, or its substitute, has been imported."""

    def __init__(self) -> None:
        self.tools = {package(tool): tool for tool in TOOLS} | {f"fastviz.compat.{tool}": tool for tool in TOOLS}
        self.pending = set(TOOLS)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        tool = self.tools.pop(fullname, None)
        if tool is None:
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None:
            self.watch(spec.loader, tool)
        return spec

    def watch(self, loader: Any, tool: str) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            # A tool and its substitute import each other: whichever comes first is complete only when both are.
            first = tool in self.pending
            self.pending.discard(tool)
            execute(module)
            if not first:
                return
            try:
                accelerate(tool)
            except ImportError as error:
                # The script would run without fastviz, so it must run with it.
                print(f"fastviz.accelerate: {tool} stays as it is: {error}", file=sys.stderr)

        loader.exec_module = exec_module


def accelerate_on_import() -> None:
    """Accelerate each tool as soon as it has been imported."""
    sys.meta_path.insert(0, _Watcher())
