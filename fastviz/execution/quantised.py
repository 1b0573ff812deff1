"""Models with integer layers, through which no gradient passes."""

from __future__ import annotations

import torch
from torch import fx, nn

__all__ = ["layer_with_integers"]

_WORDS = ("quantized", "quantize_per", "dequantize")


def layer_with_integers(model: nn.Module) -> str:
    """The first quantised layer of ``model`` and its class, in words; empty if there is none.

    Those of ``torch.ao.nn.quantized`` and its kin, also in scripts, and calls of quantising functions in graphs of
    ``torch.fx`` and ``torch.export``.

    >>> layer_with_integers(nn.Linear(2, 2))
    ''
    """
    for name, module in model.named_modules():
        kind = type(module)
        if "quantized" in f"{kind.__module__}.{_script_name(module)}".split("."):
            return f"{name!r} ({getattr(module, 'original_name', kind.__name__)})"
        graph = None if isinstance(module, torch.jit.ScriptModule) else getattr(module, "graph", None)
        if isinstance(graph, fx.Graph):
            for node in graph.nodes:
                if node.op == "call_function" and any(word in str(node.target) for word in _WORDS):
                    return f"{node.name!r} ({node.target})"
    return ""


def _script_name(module: nn.Module) -> str:
    """The name of the class that a scripted module was made of, with its place."""
    if not isinstance(module, torch.jit.ScriptModule):
        return ""
    script = getattr(module, "_c", None)
    return "" if script is None else str(script._type().qualified_name())
