"""A target in words, the same in every process, so that jobs can tell whether they explain the same target."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["shown"]

_SHORT = 8
"""Tensors with more values are described by a digest."""


def shown(value: object) -> str:
    """``value`` in words, tensors by their values and functions by their name and code.

    >>> import torch
    >>> shown(torch.tensor([1, 2])), shown((3, "features.0")), shown(len)
    ('[1, 2]', "(3, 'features.0')", 'builtins.len')
    """
    if isinstance(value, Tensor):
        if value.numel() <= _SHORT:
            return str(value.tolist())
        content = value.detach().cpu().contiguous()
        raw = str(content.flatten().tolist()).encode()
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} {_digest(raw)}"
    if isinstance(value, (tuple, list)):
        inside = ", ".join(shown(each) for each in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {shown(each)}" for key, each in value.items()) + "}"
    return _function(value) if callable(value) else repr(value)


def _function(function: Callable[..., Any]) -> str:
    """Module and name; for a Python function also a digest of its code and closure."""
    if isinstance(function, functools.partial):
        return f"partial({_function(function.func)}, {shown(function.args)}, {shown(function.keywords)})"
    named = function if hasattr(function, "__qualname__") else type(function)
    name = f"{named.__module__}.{named.__qualname__}"
    code = getattr(function, "__code__", None)
    if code is None:
        return name
    plain = (str, int, float, bool, type(None), Tensor, tuple)
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    kept = [shown(each) if isinstance(each, plain) else type(each).__name__ for each in cells]
    given = [getattr(function, "__defaults__", None) or (), kept]
    return f"{name} {_digest(_code(code) + repr([shown(each) for each in given]).encode())}"


def _code(code: types.CodeType) -> bytes:
    parts = [_code(each) if isinstance(each, types.CodeType) else repr(each).encode() for each in code.co_consts]
    return b"|".join([code.co_code, *parts, repr(code.co_names).encode()])


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:12]
