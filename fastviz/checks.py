"""Checks of arguments, and their wording: which argument, what is needed, what came."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

__all__ = ["device", "image_batch", "module", "nearest", "one_of", "positive", "tensor", "whole_number"]


def tensor(
    value: object, argument: str, *, dims: tuple[int, ...] = (), layout: str = "", floating: bool = True
) -> Tensor:
    """``value``, if it is a tensor with one of ``dims`` dimensions, floating-point unless said otherwise.

    Raises:
        TypeError: not a tensor, or not floating-point.
        ValueError: another number of dimensions; ``layout`` (for example ``"[N, C, H, W]"``) says what they mean.
    """
    if not isinstance(value, Tensor):
        many = isinstance(value, (Dataset, DataLoader))
        way = f": loop over fastviz.batches({argument}, model=model), and give the images of each batch" if many else ""
        raise TypeError(f"{argument} should be a tensor, got {type(value).__name__}{way}")
    if floating and not value.is_floating_point():
        raise TypeError(f"{argument} should be a floating-point tensor, got {value.dtype}")
    if dims and value.dim() not in dims:
        raise ValueError(f"{argument} should have shape {layout}, got {list(value.shape)}")
    return value


def image_batch(value: object, argument: str = "x") -> Tensor:
    """``value``, if it is a floating-point tensor [N, C, H, W]."""
    return tensor(value, argument, dims=(4,), layout="[N, C, H, W]")


def device(value: torch.device, argument: str) -> torch.device:
    """``value``, the device of ``argument``, if fastviz computes there: a CPU, or a GPU that torch calls cuda."""
    if value.type not in ("cpu", "cuda"):
        raise ValueError(f"{argument} should be on a device of type cpu or cuda, got {str(value)!r}")
    return value


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


def positive(value: object, argument: str) -> float:
    """``value`` as a float, if it is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} should be a number, got {value!r}")
    if not 0 < value < torch.inf:
        raise ValueError(f"{argument} should be finite and above 0, got {value}")
    return float(value)
