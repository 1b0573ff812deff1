"""The leading eigenvectors of a covariance: exact, by a smaller product or by iteration, and randomised."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from fastviz.vectors.centred import Centred

__all__ = ["by_iteration", "by_products", "randomized"]

_NUMBERS = 1 << 20
"""How many numbers are in float64 at a time."""

_COLUMNS = 256
"""Columns of a symmetric product that are computed at a time, from its diagonal on."""

_WIDTH = 32
"""Columns of a Krylov block: fewer cost as much time, because the vectors are read from memory for each block."""

_LONG, _MOST_STEPS, _LARGEST_MATRIX = 24, 200, 8192

_FEW, _WORTH_SCIPY = 4, 512
"""scipy finds one in so many eigenvectors, of matrices of this size and larger, faster than torch finds all."""

_INDEPENDENT = 1e-4
"""What part of its length, at least, a column has beyond the columns before it, where Cholesky's factor is used."""


# ------------------------------------------------------------------------------------------------------- exact


def by_products(data: Centred, k: int) -> Tensor:
    """The ``k`` leading eigenvectors [k, D] of the covariance by those of ``Aᵀ A`` or ``A Aᵀ``, in float64."""
    N, D = data.x.shape
    if D <= N:
        total = data.x.new_zeros(D, D, dtype=torch.float64)
        for rows in data.parts():
            _add_upper(total, rows.double().T)
        return _strongest(total, k)[1].T
    total = data.x.new_zeros(N, N, dtype=torch.float64)
    step = max(1, _NUMBERS // N)
    parts = [slice(start, start + step) for start in range(0, D, step)]
    for part in parts:
        _add_upper(total, (data.x[:, part] - data.mean[part]).double())
    mixing = _strongest(total, k)[1]
    # QR also gives directions beyond the last one with any variance.
    found = torch.cat([(data.x[:, part] - data.mean[part]).double().T @ mixing for part in parts])
    directions: Tensor = torch.linalg.qr(found).Q
    return directions.T


def _add_upper(total: Tensor, rows: Tensor) -> None:
    """Add ``rows rowsᵀ`` to ``total``, above its diagonal and in the blocks on it."""
    for start in range(0, len(rows), _COLUMNS):
        total[start : start + _COLUMNS, start:].addmm_(rows[start : start + _COLUMNS], rows[start:].T)


def by_iteration(data: Centred, k: int) -> Tensor:
    """The same by iteration, to a residual of 1e-5 of the largest eigenvalue (1e-9 in float64).

    Rayleigh–Ritz on a growing orthonormal basis. Each step adds the residuals of Ritz vectors that have not converged,
    which is what the next Krylov block would add; when the basis is full it starts again from the Ritz vectors.
    """
    x = data.x
    tolerance = 1e-9 if x.dtype == torch.float64 else 1e-5
    most = k + 8 * _WIDTH
    generator = torch.Generator().manual_seed(0)
    covariance = _Covariance(data)
    basis = images = x.new_empty(x.shape[1], 0)
    new = _orthonormal(_random(x, _WIDTH, generator))
    for _ in range(_MOST_STEPS):
        basis, images = torch.cat([basis, new], dim=1), torch.cat([images, covariance(new)], dim=1)
        small = (basis.T @ images).double()
        values, mixing = (each.to(x.dtype) for each in torch.linalg.eigh((small + small.T) / 2))
        values, mixing = values.flip(0), mixing.flip(1)
        leading = mixing[:, :k]
        residuals = images @ leading - basis @ (leading * values[:k])
        waiting = residuals.norm(dim=0) > tolerance * values[0]
        if basis.shape[1] >= k and not waiting.any():
            return _orthonormal(basis @ leading).T
        if basis.shape[1] + _WIDTH > most:
            basis, images = basis @ mixing[:, : k + _WIDTH], images @ mixing[:, : k + _WIDTH]
        new = residuals[:, waiting][:, :_WIDTH] if waiting.any() else _random(x, _WIDTH, generator)
        new = _beyond(basis, new)
    return _strongest(covariance.matrix().double(), k)[1].T.to(x.dtype)


class _Covariance:
    """``Aᵀ A`` on blocks [D, b], computed without forming the matrix unless many blocks are needed."""

    def __init__(self, data: Centred) -> None:
        self._data = data
        self._matrix: Tensor | None = None
        self._calls = 0

    def __call__(self, block: Tensor) -> Tensor:
        self._calls += 1
        if self._calls == _LONG and len(block) <= _LARGEST_MATRIX:
            self._matrix = self.matrix()
        return self._data.scattered(block) if self._matrix is None else self._matrix @ block

    def matrix(self) -> Tensor:
        """The matrix itself [D, D]."""
        D = self._data.x.shape[1]
        total = self._data.x.new_zeros(D, D)
        for rows in self._data.parts():
            _add_upper(total, rows.T)
        return total.triu() + total.triu(1).T


# -------------------------------------------------------------------------------------------------- randomised


def randomized(data: Centred, k: int, *, oversampling: int, iterations: int, seed: int) -> tuple[Tensor, Tensor, float]:
    """Directions [k, D] that hold nearly as much variance as any k can, coordinates [N, k], and what may be missing.

    The best directions in the space of V, C V, C² V … for a random V of ``k + oversampling`` columns, C the covariance:
    one pass over the vectors for each of the ``iterations``, one for the mean and one for the coordinates.

    Returns:
        The directions, the strongest first; the coordinates; and by what part of it the last iteration raised the
        variance that they hold.
    """
    x = data.x
    width = k + oversampling
    generator = torch.Generator().manual_seed(seed)
    basis = new = _orthonormal(_random(x, width, generator))
    projected = x.new_empty(len(x), width * (iterations + 1))
    for made in projected.split(width, dim=1)[:-1]:
        new = _beyond(basis, data.scattered(new, out=made))
        basis = torch.cat([basis, new], dim=1)
    data.projected(new, out=projected[:, -width:])
    products = x.new_zeros(basis.shape[1], basis.shape[1], dtype=torch.float64)
    for rows in projected.split(max(1, _NUMBERS // basis.shape[1])):
        products.addmm_(rows.double().T, rows.double())
    before = torch.linalg.eigvalsh(products[:-width, :-width])[-k:].sum()
    values, mixing = _strongest(products, k)
    mixing = mixing.to(x.dtype)
    return (basis @ mixing).T, projected @ mixing, float(1 - before / values.sum())


def _random(like: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """Random numbers [D, columns] for vectors ``like`` [N, D], the same on every device."""
    return torch.randn(like.shape[1], columns, generator=generator, dtype=like.dtype).to(like.device)


# --------------------------------------------------------------------------------------------- small matrices


def _strongest(symmetric: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest eigenvalues, the largest first, and their vectors [D, k]; only the upper half is read."""
    D = len(symmetric)
    if symmetric.device.type == "cpu" and max(_WORTH_SCIPY, _FEW * k) <= D and importlib.util.find_spec("scipy"):
        from scipy.linalg import eigh

        # as Fortran has it: what is above the diagonal in torch's order stands below it
        found = eigh(symmetric.numpy().T, subset_by_index=[D - k, D - 1], overwrite_a=True, check_finite=False)
        values, vectors = (torch.from_numpy(each) for each in found)
    else:
        values, vectors = torch.linalg.eigh(symmetric, UPLO="U")
    return values[-k:].flip(0), vectors[:, -k:].flip(1)


def _beyond(basis: Tensor, columns: Tensor) -> Tensor:
    """An orthonormal basis of what the ``columns`` add to the space of the orthonormal ``basis``."""
    columns = _orthonormal(columns - basis @ (basis.T @ columns))
    for _ in range(3):  # a pass leaves rounding errors of the size of what it removed
        overlap = basis.T @ columns
        columns = columns - basis @ overlap
        if overlap.abs().max() < torch.finfo(columns.dtype).eps ** 0.5:
            return columns
        columns = _orthonormal(columns)
    return columns


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the space of the columns, in their order.

    By Cholesky's factor of their products in float64, which is several times faster than Householder's reflections; by
    these where a column adds too little to those before it.
    """
    exact = columns.double()
    for _ in range(2 if columns.dtype == torch.float64 else 1):
        factor, failed = torch.linalg.cholesky_ex(exact.T @ exact, upper=True)
        if failed or not (factor.diagonal() > _INDEPENDENT * exact.norm(dim=0)).all():
            reflected: Tensor = torch.linalg.qr(columns).Q
            return reflected
        exact = torch.linalg.solve_triangular(factor, exact, upper=True, left=False)
    return exact.to(columns.dtype)
