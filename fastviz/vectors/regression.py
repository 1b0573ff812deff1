"""Linear models of few numbers, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["constrained_least_squares", "weighted_ridge"]


def weighted_ridge(rows: Tensor, values: Tensor, weights: Tensor, penalty: float) -> tuple[Tensor, float]:
    """Coefficients [D] of ``values`` [P] on ``rows`` [P, D], and the fit: weighted R², 1 at best.

    Minimises ``Σ_i w_i (y_i − c − x_i·β)² + penalty · |β|²`` by scikit-learn's ``Ridge``; the constant c is free.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.

    >>> found, fit = weighted_ridge(torch.eye(2), torch.tensor([1.0, 3.0]), torch.ones(2), 0.0)
    >>> round(float(found[1] - found[0]), 6), round(fit, 6)
    (2.0, 1.0)
    """
    try:
        from sklearn.linear_model import Ridge
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'lime needs scikit-learn: pip install "fastviz[perturbation]"', name="sklearn"
        ) from error
    x, y, w = (each.detach().double().cpu().numpy() for each in (rows, values, weights))
    model = Ridge(alpha=penalty).fit(x, y, sample_weight=w)
    varied = bool((values != values[0]).any())
    return torch.from_numpy(model.coef_), float(model.score(x, y, sample_weight=w)) if varied else 1.0


def constrained_least_squares(rows: Tensor, values: Tensor, weights: Tensor, total: Tensor) -> Tensor:
    """Coefficients β [D] with ``Σ β = total`` that minimise ``Σ_i w_i (y_i − x_i·β)²``; the shortest where many do.

    Args:
        rows: [P, D].
        values: [P].
        weights: [P], 0 or more.
        total: one number.

    >>> constrained_least_squares(torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]), torch.ones(1), torch.tensor(5.0))
    tensor([2., 3.], dtype=torch.float64)
    """
    x, y, w, total = (each.double() for each in (rows, values, weights, total))
    # β = total / D + a vector that sums to zero, written in a basis of such vectors
    D = x.shape[1]
    even = total / D
    # Householder: all columns of I − 2uuᵀ but the first are orthonormal and sum to zero.
    u = torch.ones(D, dtype=torch.float64, device=x.device)
    u[0] += D**0.5
    u /= u.norm()
    basis = (torch.eye(D, dtype=torch.float64, device=x.device) - 2 * torch.outer(u, u))[:, 1:]
    root = w.sqrt()[:, None]
    rest = (y - x.sum(1) * even)[:, None]
    found: Tensor = torch.linalg.pinv(root * (x @ basis)) @ (root * rest)
    coefficients: Tensor = even + (basis @ found)[:, 0]
    return coefficients
