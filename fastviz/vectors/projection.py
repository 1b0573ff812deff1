"""Vectors on a plane: principal components on the vectors' device, and t-SNE."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from fastviz._util import checks

__all__ = ["Components", "pca", "tsne"]

_SMALL = 1024
"""Up to this many vectors or dimensions, all components are computed; beyond, only those requested."""

_NUMBERS = 1 << 20
"""How many numbers are centred at a time: they fit into the cache, and no second copy of all vectors is needed."""

_TSNE_DIMENSIONS = 50

_WIDTH = 32
"""Columns of a Krylov block: fewer cost as much time, because the vectors are read from memory for each block."""

_LONG, _MOST_STEPS, _LARGEST_MATRIX = 24, 200, 8192


@dataclass(frozen=True, eq=False)
class Components:
    """What :func:`pca` returns, the strongest component first.

    Attributes:
        coordinates: [N, k], the centred vectors along the components.
        directions: [k, D], the components, orthogonal and of length 1; the entry of largest magnitude is positive.
        mean: [D], what was subtracted.
        variance: [k], the variance along each component, divided by N − 1.
        share: [k], that as a fraction of the variance in all D dimensions; 0 where all vectors are the same.
    """

    coordinates: Tensor
    directions: Tensor
    mean: Tensor
    variance: Tensor
    share: Tensor


def pca(vectors: Tensor, dimensions: int = 2) -> Components:
    """The principal components of ``vectors``: the directions of largest variance. Pearson 1901; Hotelling 1933.

    Coordinates are ``(V − mean) Uᵀ`` with U the leading eigenvectors of the covariance: scikit-learn's ``PCA``, its
    signs included. With at most 1,024 vectors or dimensions by the eigenvectors of the smaller product, in float64;
    beyond by a block Krylov method with restarts (Zhou, Saad 2008, "Block Krylov–Schur method for large symmetric
    eigenvalue problems", https://doi.org/10.1007/s11075-008-9192-9) that goes on until every residual
    ``‖Cu − λu‖`` is below 1e-5 of the largest eigenvalue (1e-9 in float64). Directions whose variances differ by less
    than that may be mixed.

    Args:
        vectors: [N, D], float32 or float64, N at least 2, finite. Vectors that are all the same have coordinates 0.
        dimensions: how many components, at most min(N, D).

    Returns:
        Coordinates, directions and variances in the dtype and on the device of ``vectors``.

    Raises:
        TypeError, ValueError: other vectors, too many dimensions.

    >>> found = pca(torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]]), 1)
    >>> found.share.item(), [round(value, 3) for value in found.coordinates.flatten().tolist()]
    (1.0, [-2.236, 0.0, 2.236])
    """
    x = _vectors(vectors)
    k = checks.whole_number(dimensions, "dimensions", minimum=1)
    N, D = x.shape
    if k > min(N, D):
        raise ValueError(f"dimensions should be at most {min(N, D)} for {N} vectors of {D} numbers, got {k}")
    mean = x.mean(0, dtype=torch.float64).to(x.dtype)
    total = torch.stack([((rows - mean) ** 2).sum(dtype=torch.float64) for rows in _parts(x)]).sum()
    # If all vectors are equal, only the rounding of their mean remains.
    if total <= N * D * (torch.finfo(x.dtype).eps * x.abs().max().double()) ** 2:
        zero = x.new_zeros(k)
        directions = torch.eye(k, D, dtype=x.dtype, device=x.device)
        return Components(x.new_zeros(N, k), directions, mean, zero, zero.clone())
    if min(N, D) > _SMALL:
        directions = _leading(_Covariance(x, mean), D, k, x)
    else:
        directions = (_by_dimensions if D <= N else _by_vectors)(x, mean, k).to(x.dtype)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1, 1)
    coordinates = torch.cat([(rows - mean) @ directions.T for rows in _parts(x)])
    variance = (coordinates.double() ** 2).sum(0) / (N - 1)
    return Components(coordinates, directions, mean, variance.to(x.dtype), (variance * (N - 1) / total).to(x.dtype))


def _vectors(vectors: Tensor) -> Tensor:
    """``vectors`` without its graph, if it is two or more finite ones."""
    checks.tensor(vectors, "vectors", dims=(2,), layout="[N, D]")
    if vectors.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"vectors should be float32 or float64, got {vectors.dtype}")
    if vectors.shape[0] < 2 or vectors.shape[1] < 1:
        raise ValueError(f"vectors should have shape [N, D], N 2 or more and D 1 or more, got {list(vectors.shape)}")
    finite = vectors.isfinite().all(1)
    if not finite.all():
        raise ValueError(f"vectors should be finite, vector {int((~finite).nonzero()[0])} is not")
    return vectors.detach()


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """``x`` a few rows at a time."""
    parts: tuple[Tensor, ...] = x.split(max(1, _NUMBERS // x.shape[1]))
    return parts


def _by_dimensions(x: Tensor, mean: Tensor, k: int) -> Tensor:
    """The leading eigenvectors [k, D] of the covariance, in float64."""
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for rows in _parts(x):
        centred = (rows - mean).double()
        total.addmm_(centred.T, centred)
    return _strongest(total, k).T


def _by_vectors(x: Tensor, mean: Tensor, k: int) -> Tensor:
    """The same from the vectors' Gram matrix, for fewer vectors than dimensions."""
    total = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    step = max(1, _NUMBERS // len(x))
    parts = [slice(start, start + step) for start in range(0, x.shape[1], step)]
    for part in parts:
        centred = (x[:, part] - mean[part]).double()
        total.addmm_(centred, centred.T)
    mixing = _strongest(total, k)
    # QR also gives directions beyond the last one with any variance.
    return _orthonormal(torch.cat([(x[:, part] - mean[part]).double().T @ mixing for part in parts])).T


class _Covariance:
    """``(X − mean)ᵀ (X − mean)`` on blocks [D, b], computed without forming the matrix unless many blocks are
    needed."""

    def __init__(self, x: Tensor, mean: Tensor) -> None:
        self._x, self._mean = x, mean
        self._matrix: Tensor | None = None
        self._calls = 0

    def __call__(self, block: Tensor) -> Tensor:
        self._calls += 1
        if self._calls == _LONG and self._x.shape[1] <= _LARGEST_MATRIX:
            self._matrix = self.matrix()
        if self._matrix is not None:
            return self._matrix @ block
        total = torch.zeros_like(block)
        for rows in _parts(self._x):
            centred = rows - self._mean
            total.addmm_(centred.T, centred @ block)
        return total

    def matrix(self) -> Tensor:
        """The matrix itself [D, D]."""
        total = self._x.new_zeros(self._x.shape[1], self._x.shape[1])
        for rows in _parts(self._x):
            centred = rows - self._mean
            total.addmm_(centred.T, centred)
        return total


def _leading(covariance: _Covariance, D: int, k: int, like: Tensor) -> Tensor:
    """The ``k`` leading eigenvectors [k, D] of the covariance.

    Rayleigh–Ritz on a growing orthonormal basis. Each step adds the residuals of Ritz vectors that have not converged,
    which is what the next Krylov block would add; when the basis is full it starts again from the Ritz vectors.
    """
    tolerance = 1e-9 if like.dtype == torch.float64 else 1e-5
    most = k + 8 * _WIDTH
    generator = torch.Generator().manual_seed(0)

    def fresh(columns: int) -> Tensor:
        return torch.randn(D, columns, generator=generator, dtype=like.dtype).to(like.device)

    basis = images = like.new_empty(D, 0)
    new = _orthonormal(fresh(_WIDTH))
    for _ in range(_MOST_STEPS):
        basis, images = torch.cat([basis, new], dim=1), torch.cat([images, covariance(new)], dim=1)
        small = (basis.T @ images).double()
        values, mixing = (each.to(like.dtype) for each in torch.linalg.eigh((small + small.T) / 2))
        values, mixing = values.flip(0), mixing.flip(1)
        leading = mixing[:, :k]
        residuals = images @ leading - basis @ (leading * values[:k])
        waiting = residuals.norm(dim=0) > tolerance * values[0]
        if basis.shape[1] >= k and not waiting.any():
            return _orthonormal(basis @ leading).T
        if basis.shape[1] + _WIDTH > most:
            basis, images = basis @ mixing[:, : k + _WIDTH], images @ mixing[:, : k + _WIDTH]
        new = residuals[:, waiting][:, :_WIDTH] if waiting.any() else fresh(_WIDTH)
        for _ in range(2):  # the first pass leaves rounding errors of the size of what it removed
            new = _orthonormal(new - basis @ (basis.T @ new))
    return _strongest(covariance.matrix(), k).T


def _strongest(symmetric: Tensor, k: int) -> Tensor:
    """The eigenvectors [D, k] of the largest eigenvalues, the largest first."""
    vectors: Tensor = torch.linalg.eigh(symmetric).eigenvectors
    return vectors.flip(1)[:, :k]


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the space of the columns, in their order."""
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def tsne(
    vectors: Tensor,
    *,
    perplexity: float | None = None,
    seed: int = 0,
    engine: Literal["auto", "sklearn", "openTSNE"] = "auto",
) -> Tensor:
    """Coordinates [N, 2] on a plane where neighbours among ``vectors`` stay neighbours, by t-SNE.

    Van der Maaten, Hinton 2008, "Visualizing Data using t-SNE", https://jmlr.org/papers/v9/vandermaaten08a.html.
    Vectors of more than 50 numbers are first brought to their 50 principal components, in the spirit of the paper (30
    there). Distances between groups, and their sizes, mean little. The start is the first two components with a little
    noise, and the seed is fixed, so the same vectors give the same picture on the same machine.

    Args:
        vectors: [N, D], float32 or float64, N at least 4, finite, not all the same.
        perplexity: about how many neighbours each vector keeps, 1 or more and below N; None is 30, or (N − 1) / 3 where
            that is less.
        seed: for the random numbers of the engine.
        engine: ``"sklearn"`` (scikit-learn, Barnes–Hut); ``"openTSNE"``, which is faster above some thousand vectors;
            ``"auto"``: openTSNE where it is installed.

    Returns:
        [N, 2] in the dtype and on the device of ``vectors``; the computation runs on the CPU.

    Raises:
        TypeError, ValueError: other vectors, too few for the perplexity, an unknown word.
        ModuleNotFoundError: the engine is not installed.

    >>> groups = torch.cat([torch.zeros(10, 3), torch.ones(10, 3)]) + torch.linspace(0, 0.1, 20)[:, None]
    >>> tsne(groups, perplexity=5, engine="sklearn").shape
    torch.Size([20, 2])
    """
    x = _vectors(vectors)
    checks.one_of(engine, "engine", ("auto", "sklearn", "openTSNE"))
    checks.whole_number(seed, "seed", minimum=0)
    N, D = x.shape
    if N < 4:
        raise ValueError(f"vectors should be at least 4 for t-SNE, got {N}; principal components need 2")
    if perplexity is None:
        perplexity = min(30.0, (N - 1) / 3)
    elif not 1 <= checks.positive(perplexity, "perplexity") < N:
        raise ValueError(f"perplexity should be at least 1 and below the number of vectors, {N}, got {perplexity:g}")
    found = pca(x, min(_TSNE_DIMENSIONS, N, D))
    if not found.variance.any():
        raise ValueError(f"vectors should not all be the same for t-SNE, and these {N} are")
    # The first components, scaled down as both engines expect, plus noise: points on a line could never leave it.
    start = found.coordinates[:, :2] if D > 1 else functional.pad(found.coordinates, (0, 1))
    noise = torch.randn(N, 2, generator=torch.Generator().manual_seed(seed), dtype=x.dtype).to(x.device)
    start = 1e-4 * (start / start[:, 0].std() + 0.01 * noise)
    data = found.coordinates if D > _TSNE_DIMENSIONS else x
    if engine == "auto":
        engine = "openTSNE" if importlib.util.find_spec("openTSNE") else "sklearn"
    run = _by_sklearn if engine == "sklearn" else _by_opentsne
    return torch.tensor(run(data.cpu().numpy(), start.cpu().numpy(), perplexity, seed), dtype=x.dtype, device=x.device)


def _by_sklearn(data: Any, start: Any, perplexity: float, seed: int) -> Any:
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("t-SNE needs scikit-learn: pip install scikit-learn", name="sklearn") from error
    return TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(data)


def _by_opentsne(data: Any, start: Any, perplexity: float, seed: int) -> Any:
    try:
        from openTSNE import TSNE
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("engine openTSNE is not installed: pip install openTSNE", name="openTSNE") from error
    return TSNE(perplexity=perplexity, initialization=start, random_state=seed).fit(data)
