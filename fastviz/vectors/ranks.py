"""Ranks of numbers, and correlations of rows."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["correlation", "ranks"]


def ranks(values: Tensor) -> Tensor:
    """The place of each value in its row [N, P], float64; equal ones share the mean of their places."""
    ordered, order = values.sort(dim=1)
    first = torch.searchsorted(ordered, ordered, right=False)
    last = torch.searchsorted(ordered, ordered, right=True)
    shared = (first + last - 1).double() / 2
    return torch.empty_like(shared).scatter_(1, order, shared)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's, of each row of [N, P]; NaN where one is constant."""
    a, b = (each.double() - each.double().mean(1, keepdim=True) for each in (first, second))
    norms = a.square().sum(1).sqrt() * b.square().sum(1).sqrt()
    return torch.where(norms > 0, (a * b).sum(1) / torch.where(norms > 0, norms, 1), torch.nan).clamp(-1, 1)
