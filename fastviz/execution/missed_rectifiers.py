"""Finds activations that did not get the backward rule: by autograd node, by call and in scripted code."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from fastviz.execution import elementwise

__all__ = ["REPLAYED", "activation_name", "call_label", "graph_nodes", "scripted_parts"]


def call_label(kind: elementwise.Kind) -> str:
    """The name and the place of the call that is being intercepted."""
    place = _place_of_call()
    return f"torch.{kind.name}" + (f" at {place}" if place else "")


def _place_of_call() -> str:
    """File and line of the call that is being intercepted, in the model's own source; "" if unknown."""
    ours, torchs = f"{Path(__file__).parent}{os.sep}", f"{Path(torch.__file__).parent}{os.sep}"
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(ours):
        frame = frame.f_back
    while frame is not None and not frame.f_code.co_filename.startswith(ours):
        if not frame.f_code.co_filename.startswith(torchs):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


# Functions that rectifiers and similar activations consist of in scripted code.
_SCRIPTED_CHOICES = (
    *("relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_", "threshold", "threshold_", "clamp", "clamp_"),
    *("clamp_min", "clamp_min_", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "selu", "selu_", "celu", "silu"),
    *("silu_", "gelu", "mish", "mish_", "hardswish", "hardswish_", "softplus", "where", "masked_fill", "masked_fill_"),
    *("maximum", "fmax", "gt", "ge", "lt", "le", "abs", "sign", "heaviside", "index_put", "index_put_", "rrelu"),
)


def scripted_parts(model: nn.Module) -> list[str]:
    """Names of the scripted modules of ``model``, and of scripted functions its modules call, that may rectify."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not isinstance(module, torch.jit.ScriptModule):
            found.update(
                (str(each.name), None) for each in _scripted_functions(type(module).forward, type(module), seen)
            )
            is_torchs = type(module).__module__.partition(".")[0] == "torch"
            for value in () if is_torchs else vars(module).values():
                if isinstance(value, torch.jit.ScriptFunction) and _chooses(value.inlined_graph):
                    found[str(value.name)] = None
            continue
        inside = any(isinstance(modules[above], torch.jit.ScriptModule) for above in _above(name))
        if not inside and hasattr(module, "inlined_graph") and _chooses(module.inlined_graph):
            found[name] = None
    return list(found)


def _scripted_functions(function: object, home: type, seen: set[int]) -> Iterator[Any]:
    """Scripted functions that may rectify, among what the code of a Python function names, and so on."""
    if isinstance(function, torch.jit.ScriptFunction):
        if _chooses(function.inlined_graph):
            yield function
        return
    function = inspect.unwrap(function) if callable(function) else function
    if not isinstance(function, FunctionType) or id(function.__code__) in seen:
        return
    seen.add(id(function.__code__))
    if function.__module__ is None or function.__module__.partition(".")[0] in ("torch", "fastviz"):
        return
    for name in function.__code__.co_names:
        yield from _scripted_functions(function.__globals__.get(name), home, seen)
        yield from _scripted_functions(inspect.getattr_static(home, name, None), home, seen)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell that is still empty
            yield from _scripted_functions(cell.cell_contents, home, seen)


def _above(name: str) -> list[str]:
    """Names of the modules that a module is in, the model itself among them."""
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in range(len(parts))]


def _chooses(graph: Any) -> bool:
    return any(graph.findNode(f"aten::{name}", True) is not None for name in _SCRIPTED_CHOICES)


REPLAYED = "_ReplayBackward"
"""The node of a pass that :mod:`fastviz.execution.cuda_graphs` replays; it was checked before it was recorded."""


def graph_nodes(output: Tensor) -> Iterator[Any]:
    """Each node once of the autograd graph of ``output``."""
    seen = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in node.next_functions)


# Autograd nodes of activations that the rules do not cover → their common names.
_OTHER_ACTIVATIONS = {
    "Celu": "CELU",
    "Elu": "ELU or SELU",
    "Fmax": "torch.fmax",
    "Gelu": "GELU",
    "Hardswish": "Hardswish",
    "LeakyRelu": "LeakyReLU",
    "Maximum": "torch.maximum",
    "Mish": "Mish",
    "PreluKernel": "PReLU",
    "Relu": "ReLU",
    "RreluWithNoise": "RReLU",
    "Silu": "SiLU",
    "Softplus": "Softplus",
}


def activation_name(node: Any) -> str | None:
    """The name of the activation with this autograd node; None if it is no activation, or got the rule."""
    name = node.name()
    kind = re.sub(r"Backward\d*$", "", name)
    if kind in _OTHER_ACTIVATIONS:
        return _OTHER_ACTIVATIONS[kind]
    if kind == "Threshold":
        return "threshold" if node._saved_threshold == 0 else None
    if kind == "Hardtanh":
        return "hardtanh" if node._saved_min_val == 0 else None
    if kind in ("Clamp", "ClampMin"):
        # Reading a saved tensor could recompute a checkpointed part, so a tensor is reported whatever its value.
        if hasattr(node, "_raw_saved_min"):
            return "clamp to a tensor"
        return "clamp" if node._saved_min == 0 else None
    if "DifferentiableGraph" in kind:
        return "scripted code"
    return _foreign_function(node)


def _foreign_function(node: Any) -> str | None:
    """The name and place of a foreign autograd function, which may do anything; None for other nodes."""
    function = getattr(node, "_forward_cls", None)
    if function is None:
        # One written in C++ is only recognisable by its name.
        return node.name() if "relu" in node.name().lower() and "fastviz" not in node.name().lower() else None
    if function.__module__.partition(".")[0] in ("fastviz", "torch"):
        return None
    try:
        place = f" at {inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):
        place = ""
    return f"{node.name()}{place}"
