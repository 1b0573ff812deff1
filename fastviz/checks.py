"""Checks of arguments, and their wording: which argument, what is needed, what came."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["image_batch", "module", "nearest", "number", "one_of", "positive", "tensor", "whole_number"]


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
        raise TypeError(f"{argument} should be a tensor, got {type(value).__name__}")
    _dense(value, argument)
    if floating and not value.is_floating_point():
        raise TypeError(f"{argument} should be a floating-point tensor, got {value.dtype}")
    if dims and value.dim() not in dims:
        cure = f"; {argument}[None] is a batch of one" if dims == (4,) and value.dim() == 3 else ""
        raise ValueError(f"{argument} should have shape {layout}, got {list(value.shape)}{cure}")
    return value


def _dense(value: Tensor, argument: str) -> None:
    """Refuses tensors that few operations of torch take, and says how to make them ordinary."""
    if value.is_nested:
        raise TypeError(f"{argument} should be one plain tensor, got a nested tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{argument} should be a dense tensor, got one of layout {value.layout}: give .to_dense()")
    if value.is_quantized:
        raise TypeError(f"{argument} should be an ordinary tensor, got quantised {value.dtype}: give .dequantize()")
    names = getattr(value, "names", ())  # later versions of torch have none
    if any(names):
        raise ValueError(f"{argument} should have no named dimensions, got {names}: give .rename(None)")


def image_batch(value: object, argument: str = "x") -> Tensor:
    """``value``, if it is a floating-point tensor [N, C, H, W]."""
    return tensor(value, argument, dims=(4,), layout="[N, C, H, W]")


def module(value: object, argument: str = "model") -> nn.Module:
    """``value``, if it is a torch module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{argument} should be a torch.nn.Module, got {type(value).__name__}")
    return value


def one_of(value: object, argument: str, choices: Iterable[str]) -> str:
    """``value``, if it is one of the words in ``choices``."""
    words = tuple(choices)
    if not isinstance(value, str) or value not in words:
        listed = ", ".join(repr(word) for word in words)
        raise ValueError(f"{argument} should be one of {listed}, got {value!r}")
    return value


def nearest(value: str, argument: str, known: Iterable[str]) -> str:
    """``value``, if it is one of the ``known`` names; else a ValueError with the names nearest to it."""
    names = tuple(known)
    if value in names:
        return value
    close = difflib.get_close_matches(value, names, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(close)}" if close else ""
    raise ValueError(f"{argument} {value!r} is not known{hint}")


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
