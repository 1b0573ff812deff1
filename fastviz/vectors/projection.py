"""Vectors on a plane: principal components on the vectors' device, and t-SNE."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from fastviz._util import checks
from fastviz.images.notebook import NotebookResult
from fastviz.vectors import eigenvectors
from fastviz.vectors.centred import Centred
from fastviz.vectors.nearest_neighbours import nearest

__all__ = ["Components", "Solver", "pca", "tsne"]

Solver = Literal["exact", "randomized"]

_SMALL = 1024
"""Up to this many vectors or dimensions, the exact solver computes the smaller product; beyond, it iterates."""

_TSNE_DIMENSIONS = 50


@dataclass(frozen=True, eq=False, repr=False)
class Components(NotebookResult):
    """What :func:`pca` returns, the strongest component first.

    Attributes:
        coordinates: [N, k], the centred vectors along the components.
        directions: [k, D], the components, orthogonal and of length 1; the entry of largest magnitude is positive.
        mean: [D], what was subtracted.
        variance: [k], the variance along each component, divided by N − 1.
        share: [k], that as a fraction of the variance in all D dimensions; 0 where all vectors are the same.
        last_gain: of the randomized solver, by what fraction of it the last iteration raised the variance that the k
            components hold together; 0 of the exact one.

    >>> pca(torch.eye(4), 2)
    Components(coordinates=float32 [4, 2], directions=float32 [2, 4], mean=float32 [4], variance=float32 [2], \
share=float32 [2], last_gain=0.0)
    """

    coordinates: Tensor
    directions: Tensor
    mean: Tensor
    variance: Tensor
    share: Tensor
    last_gain: float = 0.0


def pca(
    vectors: Tensor,
    dimensions: int = 2,
    *,
    solver: Solver = "exact",
    oversampling: int = 10,
    iterations: int = 3,
    seed: int = 0,
) -> Components:
    """The principal components of ``vectors``: the directions of largest variance. Pearson 1901; Hotelling 1933.

    Coordinates are ``(V − mean) Uᵀ`` with U the leading eigenvectors of the covariance: scikit-learn's ``PCA``, its
    signs included.

    ``"exact"``: with at most 1,024 vectors or dimensions by the eigenvectors of the smaller product, in float64; beyond
    by a block Krylov method with restarts (Zhou, Saad 2008, "Block Krylov–Schur method for large symmetric eigenvalue
    problems", https://doi.org/10.1007/s11075-008-9192-9), until every residual ``‖Cu − λu‖`` is below 1e-5 of the
    largest eigenvalue (1e-9 in float64). Directions whose variances differ by less than that may be mixed.

    ``"randomized"``: the best directions in the space of R, CR, C²R … for a random R of ``dimensions + oversampling``
    columns: Halko, Martinsson, Tropp 2011, "Finding structure with randomness", https://arxiv.org/abs/0909.4061, with
    all blocks kept as in Musco, Musco 2015, "Randomized block Krylov methods", https://arxiv.org/abs/1504.05477. They
    hold a little less variance than the exact ones; ``last_gain`` says how little.

    Args:
        vectors: [N, D], float32 or float64, N at least 2, finite. Vectors that are all the same have coordinates 0.
        dimensions: how many components, at most min(N, D).
        solver: see above. A randomized one that would compute as much as the exact one gives the exact components.
        oversampling: of the randomized solver: columns beyond ``dimensions``.
        iterations: of the randomized solver: products with the covariance, at least 1.
        seed: of the randomized solver: for its random numbers, which are drawn on the CPU.

    Returns:
        Coordinates, directions and variances in the dtype and on the device of ``vectors``.

    Raises:
        TypeError, ValueError: other vectors, too many dimensions, an unknown word.

    >>> found = pca(torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]]), 1)
    >>> round(found.share.item(), 3), [round(value, 3) for value in found.coordinates.flatten().tolist()]
    (1.0, [-2.236, 0.0, 2.236])
    """
    x = _vectors(vectors)
    k = checks.whole_number(dimensions, "dimensions", minimum=1)
    checks.one_of(solver, "solver", ("exact", "randomized"))
    checks.whole_number(oversampling, "oversampling", minimum=0)
    checks.whole_number(iterations, "iterations", minimum=1)
    checks.whole_number(seed, "seed", minimum=0)
    N, D = x.shape
    if k > min(N, D):
        raise ValueError(f"dimensions should be at most {min(N, D)} for {N} vectors of {D} numbers, got {k}")
    data = Centred(x)
    if data.all_equal:
        zero = x.new_zeros(k)
        directions = torch.eye(k, D, dtype=x.dtype, device=x.device)
        return Components(x.new_zeros(N, k), directions, data.mean, zero, zero.clone())
    gain = 0.0
    if solver == "randomized" and (2 * iterations + 1) * (k + oversampling) < min(N, D):
        directions, coordinates, gain = eigenvectors.randomized(
            data, k, oversampling=oversampling, iterations=iterations, seed=seed
        )
    else:
        find = eigenvectors.by_iteration if min(N, D) > _SMALL else eigenvectors.by_products
        directions = find(data, k).to(x.dtype)
        coordinates = data.projected(directions.T)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    signs = torch.where(largest < 0, -1, 1)
    directions, coordinates = directions * signs, coordinates * signs.T
    squares = coordinates.double().square().sum(0)
    variance, share = (squares / (N - 1)).to(x.dtype), (squares / data.total).to(x.dtype)
    return Components(coordinates, directions, data.mean, variance, share, gain)


def _vectors(vectors: Tensor) -> Tensor:
    """``vectors`` without its graph, if it is two or more."""
    checks.tensor(vectors, "vectors", dims=(2,), layout="[N, D]")
    if vectors.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"vectors should be float32 or float64, got {vectors.dtype}")
    if vectors.shape[0] < 2 or vectors.shape[1] < 1:
        raise ValueError(f"vectors should have shape [N, D], N 2 or more and D 1 or more, got {list(vectors.shape)}")
    return vectors.detach()


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
    return torch.tensor(run(data, start.cpu(), perplexity, seed), dtype=x.dtype, device=x.device)


def _by_sklearn(data: Tensor, start: Tensor, perplexity: float, seed: int) -> Any:
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('t-SNE needs scikit-learn: pip install "fastviz[maps]"', name="sklearn") from error
    return TSNE(perplexity=perplexity, init=start.numpy(), random_state=seed).fit_transform(data.cpu().numpy())


def _by_opentsne(data: Tensor, start: Tensor, perplexity: float, seed: int) -> Any:
    try:
        from openTSNE import TSNE
        from openTSNE.nearest_neighbors import PrecomputedNeighbors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'engine openTSNE is not installed: pip install "fastviz[tsne]"', name="openTSNE"
        ) from error
    # Its own search from 1,000 vectors on is approximate, slower, and depends on the number of threads.
    near, distances = (each.cpu().numpy() for each in nearest(data, min(len(data) - 1, int(3 * perplexity))))
    engine = TSNE(
        perplexity=perplexity,
        initialization=start.double().numpy(),
        neighbors=PrecomputedNeighbors(near, distances),
        n_jobs=torch.get_num_threads(),
        random_state=seed,
    )
    return engine.fit(data.cpu().numpy())
