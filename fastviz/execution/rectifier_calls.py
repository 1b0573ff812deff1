"""How ``F.relu`` and its variants are recognised: the calls that are rectifiers by their name and arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["COMPARISONS", "SPELLINGS", "RectifierCall", "read"]


class RectifierCall(NamedTuple):
    """A call that computes min(max(x, 0), upper)."""

    x: Tensor
    upper: float | None
    in_place: bool


# The ways of writing a rectifier, and the parameters of each, in order.
_PARAMETERS = {
    "relu": ("input", "inplace"),
    "relu6": ("input", "inplace"),
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
    "threshold": ("input", "threshold", "value", "inplace"),
    "clamp": ("input", "min", "max"),
    "clip": ("input", "min", "max"),
    "clamp_min": ("input", "min"),
}


def _spellings() -> dict[Callable[..., object], tuple[str, bool]]:
    """Every function of torch that may be a rectifier → its key in ``_PARAMETERS``, and whether it works in place."""
    table: dict[Callable[..., object], tuple[str, bool]] = {}
    for name in _PARAMETERS:
        for variant, in_place in ((name, False), (f"{name}_", True)):
            for home in (torch, Tensor, functional, torch._C._nn):
                if hasattr(home, variant):
                    table[getattr(home, variant)] = (name, in_place)
            # ATen calls, as in torch.export and torch.fx graphs.
            packet = getattr(torch.ops.aten, variant)
            for function in (packet, *(getattr(packet, overload) for overload in packet.overloads())):
                table[function] = (name, in_place)
    return table


SPELLINGS = _spellings()

# Calls that rectifiers written by hand consist of, in code that is being compiled.
COMPARISONS = frozenset(
    getattr(home, name)
    for name in ("gt", "ge", "lt", "le", "__gt__", "__ge__", "__lt__", "__le__", "maximum", "fmax", "sign", "heaviside")
    for home in (torch, Tensor)
    if hasattr(home, name)
)


def _number(bound: object) -> float | None:
    """A bound of ``clamp`` as a number; NaN for a tensor whose value cannot be read without waiting for a device."""
    if isinstance(bound, Tensor):
        return float(bound) if bound.numel() == 1 and bound.device.type == "cpu" else torch.nan
    return bound  # type: ignore[return-value]


def read(kind: str, in_place: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RectifierCall | None:
    """The rectifier that a call is, or None if it is none (another bound) or has no gradient (``out=``)."""
    names = _PARAMETERS[kind]
    given = dict(zip(names, args, strict=False))
    for key, value in kwargs.items():
        given["input" if key == "self" else key] = value
    lower: float | None = 0.0
    upper: float | None = None
    if kind == "relu6":
        upper = 6.0
    elif kind == "hardtanh":
        lower, upper = given.get("min_val", -1.0), given.get("max_val", 1.0)
    elif kind == "threshold":
        lower = 0.0 if given["threshold"] == 0 and given["value"] == 0 else None
    elif kind != "relu":
        lower, upper = _number(given.get("min")), _number(given.get("max"))
    x = given.get("input")
    if not isinstance(x, Tensor) or "out" in given or lower != 0 or not (upper is None or upper > 0):
        return None
    return RectifierCall(x, None if upper == torch.inf else upper, in_place or bool(given.get("inplace", False)))
