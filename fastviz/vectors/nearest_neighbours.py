"""Nearest neighbours among vectors: exact, by blocked matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from fastviz._util import checks

__all__ = ["nearest"]

_DISTANCES = 1 << 24
"""How many distances are in memory at a time."""

_NUMBERS = 1 << 22
"""How many numbers of candidates are compared at a time."""

_SPARE = 8
"""Extra candidates beyond the k wanted, so that rounding seldom leaves a query undecided."""

_LONG = 1 << 14
"""Longer vectors are multiplied in float64: in float32 the bound on rounding would leave most queries undecided."""


def nearest(vectors: Tensor, k: int, *, queries: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest of the ``vectors`` to each of them: indices [Q, k] and Euclidean distances [Q, k].

    A vector is not its own neighbour, but its copies are. Neighbours at equal distances come in their order. Candidates
    come from ``‖a‖² + ‖b‖² − 2 a·b`` by matrix products, in blocks; their distances ``‖a − b‖`` in float64 decide.
    If, by the bound on the rounding of the products, a neighbour could have been missed, the query is compared with all
    vectors in float64. So the result always equals brute force.

    Args:
        vectors: [N, D], floating-point and finite.
        k: neighbours of each, at least 1 and at most N − 1.
        queries: int64 [Q], the indices of those whose neighbours are wanted; None is all of them.

    Returns:
        int64 and float64, on the device of ``vectors``.

    Raises:
        TypeError, ValueError: other vectors, too large a ``k``, indices out of range.

    >>> nearest(torch.tensor([[0.0], [3.0], [1.0]]), 2)[0].tolist()
    [[2, 1], [2, 0], [0, 1]]
    """
    x = checks.tensor(vectors, "vectors", dims=(2,), layout="[N, D]").detach()
    x = x if x.dtype == torch.float64 else x.float()
    N, D = x.shape
    checks.whole_number(k, "k", minimum=1)
    if k > N - 1:
        raise ValueError(f"k should be at most {N - 1}, one less than the number of vectors, got {k}")
    finite = x.isfinite().all(1)
    if not finite.all():
        raise ValueError(f"vectors should be finite, vector {int((~finite).nonzero()[0])} is not")
    which = torch.arange(N, device=x.device) if queries is None else _indices(queries, N).to(x.device)
    # Distances do not change with the origin, and rounding is least about the mean.
    centred = (x - x.mean(0)).to(_product_dtype(x))
    squares = torch.cat([(rows.double() ** 2).sum(1) for rows in centred.split(max(1, _NUMBERS // D))]).to(
        centred.dtype
    )
    parts = [_block(x, centred, squares.to(centred), rows, k) for rows in which.split(max(1, _DISTANCES // N))]
    if not len(which):
        return which.new_empty(0, k), x.new_empty(0, k, dtype=torch.float64)
    return torch.cat([index for index, _ in parts]), torch.cat([distance for _, distance in parts])


def _indices(queries: Tensor, N: int) -> Tensor:
    checks.tensor(queries, "queries", dims=(1,), layout="[Q]", floating=False)
    if queries.dtype != torch.int64:
        raise TypeError(f"queries should be int64, got {queries.dtype}")
    if len(queries) and not (queries.min() >= 0 and queries.max() < N):
        raise ValueError(f"queries should be 0 to {N - 1}, got {int(queries.min())} to {int(queries.max())}")
    return queries


def _product_dtype(x: Tensor) -> torch.dtype:
    """float32 if torch multiplies it in full precision, which may be off on a GPU or by request; else float64."""
    exact = x.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if x.dtype == torch.float32 and exact and x.shape[1] <= _LONG else torch.float64


def _block(x: Tensor, centred: Tensor, squares: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Neighbours and distances of the vectors ``rows``."""
    N, D = x.shape
    # A product of D terms is off by at most D u ‖a‖ ‖b‖, and 2 ‖a‖ ‖b‖ ≤ ‖a‖² + ‖b‖²: no squared distance is less.
    slack = (D + 16) * torch.finfo(centred.dtype).eps / 2
    least = (1 - slack) * (squares[rows, None] + squares) - 2 * (centred[rows] @ centred.T)
    least[torch.arange(len(rows), device=x.device), rows] = torch.inf
    bounds, candidates = least.topk(min(k + _SPARE, N - 1), largest=False)
    candidates = candidates.sort(1).values
    step = max(1, _NUMBERS // (candidates.shape[1] * D))
    exact = torch.cat(
        [
            _distances(x[some, None], x[near])
            for some, near in zip(rows.split(step), candidates.split(step), strict=True)
        ]
    )[:, 0]
    distances, order = exact.sort(dim=1, stable=True)
    neighbours, distances = candidates.gather(1, order)[:, :k], distances[:, :k]
    if candidates.shape[1] < N - 1:
        for row in (distances[:, -1] ** 2 >= bounds.amax(1).double()).nonzero().flatten().tolist():
            every = torch.cat([_distances(x[rows[row], None], part)[0] for part in x.split(max(1, _NUMBERS // D))])
            every[rows[row]] = torch.inf
            distances_of, order = every.sort(stable=True)
            neighbours[row], distances[row] = order[:k], distances_of[:k]
    return neighbours, distances


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """``‖a − b‖`` in float64, each pair by itself: equal pairs have equal distances."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
