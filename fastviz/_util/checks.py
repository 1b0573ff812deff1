"""Checks of arguments. Each error names the argument, says what is needed and what it got."""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fastviz._util.modules import every_module

__all__ = [
    "LAYOUTS",
    "device",
    "devices",
    "image_batch",
    "instance",
    "instances",
    "layer_names",
    "module",
    "names",
    "nearest",
    "not_exporting",
    "number",
    "one_of",
    "path",
    "positive",
    "tensor",
    "whole_number",
]

_LISTED = 8
"""How many known names an error lists when none is similar."""


def tensor(
    value: object, argument: str, *, dims: tuple[int, ...] = (), layout: str = "", floating: bool = True
) -> Tensor:
    """``value``, if it is a tensor with one of ``dims`` dimensions, floating-point unless said otherwise.

    Raises:
        TypeError: not a tensor, not a dense one, or not floating-point.
        ValueError: another number of dimensions, which ``layout`` (for example ``"[N, C, H, W]"``) gives the meaning
            of; named ones.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument} should be a tensor, got {type(value).__name__}{_way_to_a_tensor(value, argument)}")
    _dense(value, argument)
    if floating and not value.is_floating_point():
        raise TypeError(f"{argument} should be a floating-point tensor, got {value.dtype}")
    if dims and value.dim() not in dims:
        cure = f"; {argument}[None] is a batch of one" if dims == (value.dim() + 1,) and value.dim() > 1 else ""
        raise ValueError(f"{argument} should have shape {layout}, got {list(value.shape)}{cure}")
    return value


def _way_to_a_tensor(value: object, argument: str) -> str:
    """How a ``value`` that holds images is given, for errors; empty if it holds none."""
    if isinstance(value, (Dataset, DataLoader)):
        return f": loop over fastviz.batches({argument}, model=model), and give the images of each batch"
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, Tensor) for each in value):
        if len({each.shape for each in value}) == 1:
            return f" of tensors: torch.stack({argument}) is a batch"
        return f" of tensors of different sizes: call it for each of them, {argument}[i][None]"
    return ""


def _dense(value: Tensor, argument: str) -> None:
    """Refuses tensors that few operations of torch take, and says how to make them ordinary."""
    if value.is_nested:
        raise TypeError(f"{argument} should be one plain tensor, got a nested tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{argument} should be a dense tensor, got one of layout {value.layout}: give .to_dense()")
    if value.is_quantized:
        raise TypeError(f"{argument} should be an ordinary tensor, got quantised {value.dtype}: give .dequantize()")
    # Later versions of torch have no names. In those that have, torch.compile stops at the question.
    if not torch.compiler.is_compiling() and hasattr(value, "has_names") and value.has_names():
        names = getattr(value, "names", ())
        raise ValueError(f"{argument} should have no named dimensions, got {names}: give .rename(None)")


LAYOUTS = {1: "[N, C, L]", 2: "[N, C, H, W]", 3: "[N, C, D, H, W]"}
"""Batches of signals, images and volumes, by their axes."""


def image_batch(value: object, argument: str = "x", *, axes: tuple[int, ...] = (2,)) -> Tensor:
    """``value``, if it is a floating-point tensor [N, C, H, W], or a batch of inputs of another number of ``axes``."""
    layout = " or ".join([", ".join(LAYOUTS[each] for each in axes[:-1]), LAYOUTS[axes[-1]]][len(axes) == 1 :])
    return tensor(value, argument, dims=tuple(each + 2 for each in axes), layout=layout)


def module(value: object, argument: str = "model") -> nn.Module:
    """``value``, if it is a torch module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{argument} should be a torch.nn.Module, got {type(value).__name__}")
    return value


def not_exporting() -> None:
    """A ValueError inside of ``torch.export``, which cannot follow what most methods do with a network."""
    if torch.compiler.is_exporting():
        raise ValueError(
            f"{_called()} of fastviz cannot be exported: its program would give the result of the example for every "
            "input; export the network itself, and call the method on that (fastviz.cam can be exported)"
        )


def _called() -> str:
    """The function of fastviz that other code called: the outermost with a public name, between us and that code."""
    found, frame = "a method", sys._getframe().f_back
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in ("fastviz", "contextlib", "functools"):
            break
        if package == "fastviz" and frame.f_code.co_name[0] not in "_<":
            found = frame.f_code.co_name
        frame = frame.f_back
    return found


def one_of(value: object, argument: str, choices: Iterable[str]) -> str:
    """``value``, if it is one of the words in ``choices``."""
    words = tuple(choices)
    if not isinstance(value, str) or value not in words:
        listed = ", ".join(repr(word) for word in words)
        raise ValueError(f"{argument} should be one of {listed}, got {value!r}")
    return value


def nearest(value: object, argument: str, known: Iterable[str]) -> str:
    """``value``, if it is one of the ``known`` names. The error lists the most similar names, or the first few."""
    names = tuple(known)
    if not isinstance(value, str):
        raise TypeError(f"{argument} should be a name, got {value!r}")
    if value in names:
        return value
    close = difflib.get_close_matches(value, names, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(close)}" if close else ""
    some = [name for name in names if name]
    if not close and some:
        hint = f"; there are: {', '.join(some[:_LISTED])}" + (", ..." if len(some) > _LISTED else "")
    raise ValueError(f"{argument} {value!r} is not known{hint}")


def names(value: object, argument: str) -> list[str]:
    """``value`` as a list, if it is one name or several."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{argument} should be a name or a list of them, got {value!r}")
    return list(value)


def layer_names(layer: object, layers: object) -> list[str] | None:
    """The names in ``layer`` (one) or ``layers`` (several, each counted once); None where neither is given.

    Raises:
        TypeError: several in ``layer``, or one that is no list in ``layers``.
        ValueError: both are given, or no name.
    """
    if layer is not None and layers is not None:
        raise ValueError(f"layer or layers should be given, not both, got {layer!r} and {layers!r}")
    if layer is not None:
        if not isinstance(layer, str):
            raise TypeError(f"layer should be one name, got {layer!r}; give several as layers=[...]")
        return [layer]
    if layers is None:
        return None
    if isinstance(layers, str):
        raise TypeError(f"layers should be a list of names, got {layers!r}; give one as layer={layers!r}")
    if not isinstance(layers, Sequence) or not all(isinstance(name, str) for name in layers):
        raise TypeError(f"layers should be a list of names, got {layers!r}")
    found = list(dict.fromkeys(layers))
    if not found:
        raise ValueError("layers should hold at least one name, got none")
    return found


def device(value: torch.device | str, argument: str = "device") -> torch.device:
    """``value`` as a device, if fastviz computes there: a CPU, or a GPU that torch calls cuda and that is here.

    ``"auto"`` is the first GPU that torch can use, else the CPU.

    Raises:
        ValueError: no name of a device, one that is not there, or one of another type.
    """
    if value == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(value)
        if place.type in ("cpu", "cuda"):
            torch.empty(0, device=place)
    except (RuntimeError, TypeError, AssertionError) as error:  # no device's name, or no such device here
        said = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{argument} should be auto, cpu, cuda or cuda:INDEX, and one that torch can use here, "
            f"got {str(value)!r} ({said})"
        ) from error
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"{argument} should be on a device of type cpu or cuda, got {str(place)!r}")
    return place


def devices(model: nn.Module) -> set[torch.device]:
    """The devices of the parameters and buffers of ``model``, if fastviz computes on all of them.

    Raises:
        ValueError: it does not.
    """
    # each module's own tensors: a walk over the parameters and one over the buffers take many times as long
    own = (tensors for module in every_module(model) for tensors in (module._parameters, module._buffers))
    found = {value.device for tensors in own for value in tensors.values() if value is not None}
    for each in found:
        device(each, "model")
    return found


def path(value: object, argument: str) -> Path:
    """``value`` as a path, ``~`` being the user's folder."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{argument} should be a path, got {value!r}")
    return Path(os.fsdecode(value)).expanduser()


_Kind = TypeVar("_Kind")


def instance(value: object, argument: str, kind: type[_Kind]) -> _Kind:
    """``value``, if it is of this ``kind``."""
    if not isinstance(value, kind):
        raise TypeError(f"{argument} should be of the class {kind.__name__}, got {type(value).__name__}")
    return value


def instances(value: object, argument: str, kind: type) -> tuple[Any, ...]:
    """``value`` as a tuple, if it is a list of objects of this ``kind``."""
    if not isinstance(value, Sequence) or not all(isinstance(each, kind) for each in value):
        raise TypeError(f"{argument} should be a list of {kind.__name__}, got {value!r}")
    return tuple(value)


def whole_number(value: object, argument: str, *, minimum: int) -> int:
    """``value``, if it is an int of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} should be a whole number, got {value!r}")
    if value < minimum:
        raise ValueError(f"{argument} should be at least {minimum}, got {value}")
    return value


def number(value: object, argument: str, *, low: float = -math.inf, high: float = math.inf) -> float:
    """``value`` as a float, if it is a finite number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} should be a number, got {value!r}")
    if not (math.isfinite(value) and low <= value <= high):
        bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        needed = "finite" if low == -math.inf and high == math.inf else f"finite and {bounds}"
        raise ValueError(f"{argument} should be {needed}, got {value}")
    return float(value)


def positive(value: object, argument: str) -> float:
    """``value`` as a float, if it is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} should be a number, got {value!r}")
    if not 0 < value < torch.inf:
        raise ValueError(f"{argument} should be finite and above 0, got {value}")
    return float(value)
