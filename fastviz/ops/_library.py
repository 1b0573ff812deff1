"""Loads the native libraries, or stops with the reason and the command that fixes it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from fastviz.ops._build import source_hash

__all__ = ["INSTRUCTIONS", "check_instructions", "libraries", "load", "version"]

INSTRUCTIONS = ("baseline", "avx2", "avx512")
"""The instruction sets that the CPU kernels are compiled for, in the order of csrc/kernels/kernels.h."""

_FOLDER = Path(__file__).parent
_REPAIR = "run `make build` in a checkout, or install a wheel again with `pip install --force-reinstall --no-deps`"
_status: dict[str, str] = {}


def libraries() -> dict[str, str]:
    """For each library (``"cpu"``, ``"cuda"``) the path it was loaded from, or the reason why it is not loaded.

    Returns:
        Library → path or reason; a reason begins with ``"not loaded: "``.

    Raises:
        ImportError: the CPU library could not be loaded, which importing fastviz says first.

    >>> libraries()["cpu"].startswith("not loaded: ")
    False
    """
    return dict(_status)


def check_instructions(best: str) -> None:
    """Refuse a FASTVIZ_CPU that is none of ``INSTRUCTIONS``, or more than ``best``, what the processor has.

    Raises:
        ImportError: it is so.
    """
    wanted = os.environ.get("FASTVIZ_CPU", best)
    if wanted not in INSTRUCTIONS:
        raise ImportError(f"fastviz: FASTVIZ_CPU should be one of {', '.join(INSTRUCTIONS)}, got {wanted!r}")
    if INSTRUCTIONS.index(wanted) > INSTRUCTIONS.index(best):
        raise ImportError(f"fastviz: FASTVIZ_CPU should be at most {best}, which this processor has, got {wanted}")


def version() -> str:
    """The version of the package that the native libraries were built for."""
    built: str = json.loads((_FOLDER / "_build.json").read_text())["version"]
    return built


def load() -> None:
    """Register the operators of both libraries with torch.

    Raises:
        ImportError: the CPU library is missing, older than its sources, of another version or cannot be loaded.
    """
    if _status:
        return
    note = _FOLDER / "_build.json"
    library = _FOLDER / "_cpu.so"
    if not note.exists() or not library.exists():
        raise ImportError(f"fastviz: the native library {library} is missing; {_REPAIR}")
    built = json.loads(note.read_text())
    sources = _FOLDER.parents[1] / "csrc"
    if sources.is_dir() and built["sources"] != source_hash(sources, cuda=built["cuda"] is not None):
        raise ImportError(f"fastviz: the native library {library} is older than its sources in {sources}; {_REPAIR}")
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"fastviz: the native library {library} (built with torch {built['torch']}) cannot be loaded into torch "
            f"{torch.__version__}: {error}; it needs torch 2.10 or later; {_REPAIR}"
        ) from error
    _status["cpu"] = str(library)
    _status["cuda"] = _load_cuda(built["cuda"], built.get("why_no_cuda"))


def _load_cuda(built_for: str | None, why_not_built: str | None) -> str:
    """The path of the CUDA library, or why it is not loaded. A CPU-only torch or machine is not an error.

    A runtime of another version than torch's may be on the machine, but one process should not use two.
    """
    library = _FOLDER / "_cuda.so"
    if torch.version.cuda is None:
        return f"not loaded: torch {torch.__version__} is built without CUDA"
    if built_for is None or not library.exists():
        return f"not loaded: it was not built: {why_not_built or 'no reason noted'}"
    mine = torch.version.cuda
    if built_for.partition(".")[0] != mine.partition(".")[0]:
        return (
            f"not loaded: it is built for CUDA {built_for}, and torch {torch.__version__} for CUDA {mine}; "
            "build fastviz from its sources with that toolkit, or install torch for the other"
        )
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"not loaded: {error}"
    return str(library)
