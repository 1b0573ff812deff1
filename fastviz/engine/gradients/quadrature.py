"""Quadrature rules for an integral from 0 to 1: points and weights."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fastviz._util import checks

__all__ = ["Quadrature", "quadrature"]

Quadrature = Literal["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]


def quadrature(rule: str, steps: int) -> tuple[Tensor, Tensor]:
    """Points from 0 to 1 and their weights, float64 [steps] each.

    The rules are those of captum. Riemann sums have weights 1 / steps and points at the left, right or middle of their
    intervals. The trapezoid rule is captum's: points from 0 to 1 including both ends, weights 1 / steps and half of
    that at the ends, so that they sum to (steps − 1) / steps. Gauss–Legendre by the eigenvalues of the Jacobi matrix
    (Golub, Welsch 1969).

    Raises:
        ValueError: an unknown rule; fewer than two steps, or one for Gauss–Legendre.

    >>> quadrature("riemann_middle", 2)[0].tolist()
    [0.25, 0.75]
    """
    checks.one_of(rule, "method", get_args(Quadrature))
    checks.whole_number(steps, "steps", minimum=1 if rule == "gausslegendre" else 2)
    if rule == "gausslegendre":
        k = torch.arange(1, steps, dtype=torch.float64)
        beside = k / (4 * k**2 - 1).sqrt()
        places, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
        return (places + 1) / 2, vectors[0] ** 2
    weights = torch.full((steps,), 1 / steps, dtype=torch.float64)
    first, last = {
        "riemann_left": (0.0, 1 - 1 / steps),
        "riemann_right": (1 / steps, 1.0),
        "riemann_middle": (0.5 / steps, 1 - 0.5 / steps),
        "riemann_trapezoid": (0.0, 1.0),
    }[rule]
    if rule == "riemann_trapezoid":
        weights[[0, -1]] /= 2
    return torch.linspace(first, last, steps, dtype=torch.float64), weights
