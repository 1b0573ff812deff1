"""Networks made by other people's code, named ``package.module:function``."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from fastviz._util import checks
from fastviz.models import weight_files
from fastviz.models.descriptions import ModelInfo, rename

__all__ = ["is_callable_name", "load", "named"]

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_callable_name(name: str) -> bool:
    """Whether ``name`` is of the form ``package.module:function``.

    >>> is_callable_name("nets.small:make"), is_callable_name("resnet18")
    (True, False)
    """
    return _FORM.fullmatch(name) is not None


def load(name: str, weights: str | os.PathLike[str] | None) -> nn.Module:
    """The network that the function ``name`` returns when called without arguments, with ``weights`` from a file.

    Raises:
        ImportError: there is no such module or name in it, or importing it failed.
        TypeError: what it gives is no torch module.
        ValueError: the function failed, or the weights do not fit.
    """
    made = named(name)
    # A function, a class, or a network that stands in the module as it is.
    model = made if isinstance(made, nn.Module) else _called(made, name)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {name!r} should give a torch.nn.Module, got {type(model).__name__}")
    source = None
    if weights is not None:
        source = str(Path(os.path.expanduser(weights)))
        _fill(model, name, Path(source))
    rename(model, ModelInfo(name, source))
    return model.eval() or model  # some overridden eval() methods return None


def _called(made: Callable[[], Any], name: str) -> Any:
    try:
        return made()
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"model {name!r} should be a function that gives a network when it is called without arguments; it failed "
            f"with {type(error).__name__}: {said}"
        ) from error


def named(name: str, what: str = "model") -> Any:
    """What stands under ``name``: something that can be called; ``what`` is what errors call it.

    Raises:
        ImportError: there is no such module or name in it, importing it failed, or it cannot be called.
    """
    place, _, inside = name.partition(":")
    with _here_too():
        try:
            value: Any = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
                folders = ", ".join(str(Path(folder or ".").resolve()) for folder in sys.path)
                raise ModuleNotFoundError(
                    f"{what} {name!r}: there is no module {error.name!r}; looked in {folders} "
                    "(PYTHONPATH=FOLDER adds a folder)",
                    name=error.name,
                ) from error
            raise ImportError(f"{what} {name!r}: importing {place} failed: {error}") from error
        except Exception as error:
            raise ImportError(f"{what} {name!r}: importing {place} failed: {type(error).__name__}: {error}") from error
    where = f"{place} ({getattr(value, '__file__', None) or 'a package without a file'})"
    for part in inside.split("."):
        if not hasattr(value, part):
            known = [each for each in dir(value) if callable(getattr(value, each, None)) and not each.startswith("_")]
            try:
                checks.nearest(part, f"{what} {name!r}: in {where} the name", known)
            except ValueError as error:
                raise ImportError(str(error)) from None
        value = getattr(value, part)
    if not callable(value):
        raise ImportError(f"{what} {name!r}: {inside} in {where} should be a function, got {type(value).__name__}")
    return value


@contextmanager
def _here_too() -> Iterator[None]:
    """Make modules of the current folder importable, as ``python -m`` does."""
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _fill(model: nn.Module, name: str, path: Path) -> None:
    """Load all weights in a file into ``model``, or raise an error that says what does not fit."""
    state, source = weight_files.read(path), str(path)
    state = weight_files.chosen(state, model.state_dict(), source)
    problem = weight_files.fill(model, state)
    if problem:
        raise ValueError(f"weights {source!r} do not fit {name}: {problem}")
    weight_files.check_finite(state, source)
