"""Nearest neighbours among vectors: exact, by matrix products whose error is bounded and a second look in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastviz._util import checks

__all__ = ["nearest"]

_SIDE, _SIDE_ON_A_GPU = 2048, 8192
"""Vectors a side of a tile. On a CPU its distances stay in the cache; less takes torch's selection longer."""

_NUMBERS = 1 << 20
"""How many numbers are compared in float64 at a time."""

_SPARE = 8
"""Extra candidates beyond the k wanted, so that rounding seldom leaves a query undecided."""

_LONG = 1 << 14
"""Longer vectors are multiplied in float64: in float32 the bound on rounding would leave most queries undecided."""

_SQUARES = (1e-24, 1e36)
"""Where the square of the longest vector is when float32 has room for sums of squares and for much shorter vectors."""

_LARGEST_SQUARE = 1e300


def nearest(vectors: Tensor, k: int, *, queries: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest of the ``vectors`` to each of them: indices [Q, k] and Euclidean distances [Q, k].

    A vector is not its own neighbour, but its copies are. Neighbours at equal distances come in their order. Candidates
    come from ``‖a‖² + ‖b‖² − 2 a·b`` by matrix products in float32, in tiles; where all vectors are queries, each pair
    is multiplied once. The rounding of a product of D terms is at most ``D u ‖a‖ ‖b‖``, u = 2⁻²⁴, so that every
    distance is known from below and from above. Those that can be among the k nearest are compared again: distances
    ``‖a − b‖`` in float64 decide. A query for which more than ``k + 8`` can be looks at all that can. So the result
    always equals brute force in float64.

    Args:
        vectors: [N, D], floating-point and finite.
        k: neighbours of each, at least 1 and at most N − 1.
        queries: int64 [Q], the indices of those whose neighbours are wanted; None is all of them.

    Returns:
        int64 and float64, on the device of ``vectors``.

    Raises:
        TypeError, ValueError: other vectors, also such that are more than 1e150 long; too large a ``k``, indices out of
            range.

    >>> nearest(torch.tensor([[0.0], [3.0], [1.0]]), 2)[0].tolist()
    [[2, 1], [2, 0], [0, 1]]
    """
    x = checks.tensor(vectors, "vectors", dims=(2,), layout="[N, D]").detach()
    x = x if x.dtype == torch.float64 else x.float()
    N = len(x)
    checks.whole_number(k, "k", minimum=1)
    if k > N - 1:
        raise ValueError(f"k should be at most {N - 1}, one less than the number of vectors, got {k}")
    rows = torch.arange(N, device=x.device) if queries is None else _indices(queries, N).to(x.device)
    bounds = _bounds(x)
    found = _candidates(bounds, rows, min(k + _SPARE, N - 1), every=queries is None)
    neighbours, distances = _compared(x, bounds, rows, found, k)
    if found.bounds.shape[1] < N - 1:
        limit = distances[:, -1] ** 2
        undecided = (limit >= found.bounds[:, -1]).nonzero().flatten()
        for some in undecided.split(_side(x)):
            neighbours[some], distances[some] = _all_within(x, bounds, rows[some], limit[some], k)
    return neighbours, distances


def _indices(queries: Tensor, N: int) -> Tensor:
    checks.tensor(queries, "queries", dims=(1,), layout="[Q]", floating=False)
    if queries.dtype != torch.int64:
        raise TypeError(f"queries should be int64, got {queries.dtype}")
    if len(queries) and not (queries.min() >= 0 and queries.max() < N):
        raise ValueError(f"queries should be 0 to {N - 1}, got {int(queries.min())} to {int(queries.max())}")
    return queries


def _side(x: Tensor) -> int:
    return _SIDE if x.device.type == "cpu" else _SIDE_ON_A_GPU


# ------------------------------------------------------------------------------------------------------ bounds


@dataclass(frozen=True, eq=False)
class _Bounds:
    """Squared distances between vectors from below and from above, by products.

    Attributes:
        centred: [N, D], the vectors about their mean: distances are the same, and rounding is least there.
        squares: float64 [N], their squared lengths.
        reduced: [N], less than these by what rounding can be at most.
        slack, room: that is ``slack`` times the square, and ``room`` where numbers are too small for their dtype.
    """

    centred: Tensor
    squares: Tensor
    reduced: Tensor
    slack: float
    room: float

    def below(self, rows: Tensor, first: Tensor, columns: slice) -> Tensor:
        """No squared distance [r, c] is less than these; infinity for a vector and itself.

        Args:
            rows: int64 [r].
            first: [r, D], those of ``centred``.
            columns: a range of vectors.
        """
        lower = first @ self.centred[columns].T
        torch.add(self.reduced[columns], lower, alpha=-2, out=lower)
        lower += self.reduced[rows, None]
        own = ((rows >= columns.start) & (rows < columns.stop)).nonzero().flatten()
        lower[own, rows[own] - columns.start] = torch.inf
        return lower

    def above(self, rows: Tensor, vectors: Tensor, lower: Tensor) -> Tensor:
        """No squared distance between ``rows`` [r] and ``vectors`` [r, c] is more than these, in float64."""
        return lower.double() + self.slack * 2 * (self.squares[rows, None] + self.squares[vectors]) + 4 * self.room


def _bounds(x: Tensor) -> _Bounds:
    dtype = _product_dtype(x)
    if dtype != torch.float64:
        centred = x - x.mean(0)
        squares = _squares(centred)
        if _SQUARES[0] <= squares.max() <= _SQUARES[1]:
            return _with_slack(centred.to(dtype), squares)
    centred = x.double()
    centred = centred - centred.mean(0)
    squares = _squares(centred)
    if squares.max() <= _LARGEST_SQUARE:
        return _with_slack(centred, squares)
    finite = x.isfinite().all(1)
    if not finite.all():
        raise ValueError(f"vectors should be finite, vector {int((~finite).nonzero()[0])} is not")
    raise ValueError("vectors should be at most 1e150 from their mean, so that float64 holds squared distances")


def _product_dtype(x: Tensor) -> torch.dtype:
    """float32 if torch multiplies it in full precision, which may be off on a GPU or by request; else float64."""
    exact = x.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if x.dtype == torch.float32 and exact and x.shape[1] <= _LONG else torch.float64


def _squares(vectors: Tensor) -> Tensor:
    step = max(1, _NUMBERS // max(1, vectors.shape[1]))
    return torch.cat([rows.double().square().sum(1) for rows in vectors.split(step)])


def _with_slack(centred: Tensor, squares: Tensor) -> _Bounds:
    """Of a sum of squares S = ‖a‖² + ‖b‖², the error of ``S − 2 a·b`` is at most ``slack`` times S.

    D terms in any order: ``|fl(a·b) − a·b| ≤ D u / (1 − D u) ‖a‖ ‖b‖``, and ``2 ‖a‖ ‖b‖ ≤ S`` (Higham 2002, "Accuracy
    and Stability of Numerical Algorithms", section 3.1). Centring moves a vector by u times its length, which is 4 u S
    in the square; sums and squares are rounded five times, each by 2 u S at most. In float64 the distances that decide
    are rounded as well, by 2 D u S. Numbers below the smallest normal one may count as zero.
    """
    D, limits = centred.shape[1], torch.finfo(centred.dtype)
    terms = 3 * D if centred.dtype == torch.float64 else D
    slack, room = (1.01 * terms + 24) * limits.eps / 2, 16 * D * limits.smallest_normal
    return _Bounds(centred, squares, ((1 - slack) * squares - room).to(centred.dtype), slack, room)


# -------------------------------------------------------------------------------------------------- candidates


class _Lowest:
    """The ``count`` lowest bounds of each query so far, the lowest first, and the vectors that they belong to."""

    def __init__(self, queries: int, count: int, like: Tensor) -> None:
        self.bounds = like.new_full((queries, count), torch.inf)
        self.vectors = torch.zeros(queries, count, dtype=torch.int64, device=like.device)

    def add(self, queries: slice, bounds: Tensor, first: int) -> None:
        """More bounds [q, c]: to the vectors from number ``first`` on."""
        count = self.bounds.shape[1]
        new, place = bounds.topk(min(count, bounds.shape[1]), largest=False, sorted=False)
        vectors = torch.cat([self.vectors[queries], place + first], dim=1)
        self.bounds[queries], order = torch.cat([self.bounds[queries], new], dim=1).topk(count, largest=False)
        self.vectors[queries] = vectors.gather(1, order)


def _candidates(bounds: _Bounds, rows: Tensor, count: int, *, every: bool) -> _Lowest:
    """The vectors with the lowest bounds for each of ``rows``; with ``every``, those are all vectors in order."""
    N, side = len(bounds.centred), _side(bounds.centred)
    found = _Lowest(len(rows), count, bounds.centred)
    for top in range(0, len(rows), side):
        down = slice(top, min(top + side, len(rows)))
        first = bounds.centred[rows[down]]
        for left in range(top if every else 0, N, side):
            across = slice(left, min(left + side, N))
            lower = bounds.below(rows[down], first, across)
            found.add(down, lower, left)
            if every and left > top:
                found.add(across, lower.T.contiguous(), top)
    return found


def _compared(x: Tensor, bounds: _Bounds, rows: Tensor, found: _Lowest, k: int) -> tuple[Tensor, Tensor]:
    """The nearest of the candidates, and their distances: those are computed that can be among the ``k`` nearest."""
    neighbours = rows.new_empty(len(rows), k)
    distances = x.new_empty(len(rows), k, dtype=torch.float64)
    if not len(rows):
        return neighbours, distances
    most = bounds.above(rows, found.vectors, found.bounds).kthvalue(k, dim=1, keepdim=True).values
    counts = (found.bounds <= most).sum(1)
    step = max(1, _NUMBERS // max(1, found.bounds.shape[1] * x.shape[1]))
    for some in counts.argsort().split(step):
        near = found.vectors[some, : int(counts[some[-1]])].sort(1).values
        exact, order = _distances(x[rows[some], None], x[near])[:, 0].sort(dim=1, stable=True)
        neighbours[some], distances[some] = near.gather(1, order)[:, :k], exact[:, :k]
    return neighbours, distances


def _all_within(x: Tensor, bounds: _Bounds, rows: Tensor, limit: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The nearest of all vectors, of which k are within ``limit`` [r], a squared distance."""
    neighbours = rows.new_zeros(len(rows), k)
    distances = limit.new_full((len(rows), k), torch.inf)
    first, side = bounds.centred[rows], _side(x)
    for left in range(0, len(x), side):
        across = slice(left, min(left + side, len(x)))
        lower = bounds.below(rows, first, across)
        exact = _distances_where(x[rows], x[across], (lower <= limit[:, None]) & (lower < torch.inf))
        numbers = torch.arange(across.start, across.stop, device=x.device).expand(len(rows), -1)
        distances, order = torch.cat([distances, exact], dim=1).sort(dim=1, stable=True)
        neighbours = torch.cat([neighbours, numbers], dim=1).gather(1, order[:, :k])
        distances = distances[:, :k]
    return neighbours, distances


def _distances_where(a: Tensor, b: Tensor, wanted: Tensor) -> Tensor:
    """Distances [r, c] where they are ``wanted``, else infinity."""
    step = max(1, _NUMBERS // max(1, a.shape[1]))
    if 4 * int(wanted.sum()) > wanted.numel():
        rows = max(1, _NUMBERS // len(b))
        return torch.cat([_distances(some, b) for some in a.split(rows)]).masked_fill(~wanted, torch.inf)
    exact = a.new_full(wanted.shape, torch.inf, dtype=torch.float64)
    for pairs in wanted.nonzero().split(step):
        i, j = pairs.unbind(1)
        exact[i, j] = _distances(a[i, None], b[j, None])[:, 0, 0]
    return exact


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """``‖a − b‖`` in float64, each pair by itself: equal pairs have equal distances."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
