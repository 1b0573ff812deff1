"""Principal components against scikit-learn's, also where they are found by iteration; t-SNE."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastviz as fv
from fastviz.vectors import eigenvectors, projection
from fastviz.vectors.nearest_neighbours import nearest

sklearn = pytest.importorskip("sklearn")

PHOTOS = Path(fv.__file__).parent / "models" / "data" / "photos"


def vectors(N: int, D: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Random vectors whose variances fall like those of features, not about zero."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0, -2, D, dtype=torch.float64).exp()
    turned = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    return (3 + torch.randn(N, D, generator=generator, dtype=torch.float64) * spread @ turned).to(dtype)


# ---------------------------------------------------------------------------------------------------------- pca


def test_pca_by_hand():
    """Four points on a cross: 2 and 1 from the middle (5, 7)."""
    found = fv.pca(torch.tensor([[7.0, 7.0], [3.0, 7.0], [5.0, 8.0], [5.0, 6.0]]))
    torch.testing.assert_close(found.mean, torch.tensor([5.0, 7.0]))
    torch.testing.assert_close(found.directions, torch.eye(2))
    torch.testing.assert_close(found.coordinates, torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    torch.testing.assert_close(found.variance, torch.tensor([8 / 3, 2 / 3]))
    torch.testing.assert_close(found.share, torch.tensor([0.8, 0.2]))


@pytest.mark.parametrize("small", [1024, 0], ids=["at once", "by iteration"])
@pytest.mark.parametrize(("N", "D", "k"), [(60, 20, 5), (20, 60, 5), (400, 300, 40), (50, 50, 1)])
def test_pca_is_scikit_learns(monkeypatch, small, N, D, k):
    from sklearn.decomposition import PCA

    monkeypatch.setattr(projection, "_SMALL", small)
    x = vectors(N, D)
    expected = PCA(k, svd_solver="full").fit(x.numpy())
    found = fv.pca(x, k)
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(found.coordinates.numpy(), expected.transform(x.numpy()), **tolerance)
    torch.testing.assert_close(found.directions.numpy(), expected.components_, **tolerance)
    torch.testing.assert_close(found.variance.numpy(), expected.explained_variance_, **tolerance)
    torch.testing.assert_close(found.share.numpy(), expected.explained_variance_ratio_, **tolerance)
    torch.testing.assert_close(found.mean.numpy(), expected.mean_, **tolerance)


@pytest.mark.parametrize("long", [1, 10_000], ids=["with the matrix", "without"])
def test_pca_of_equal_variances_converges(monkeypatch, long):
    """The hardest case for iteration: the basis fills up and starts again many times."""
    monkeypatch.setattr(projection, "_SMALL", 0)
    monkeypatch.setattr(eigenvectors, "_LONG", long)
    monkeypatch.setattr(eigenvectors, "_WIDTH", 4)
    x = torch.randn(900, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = fv.pca(x, 6)
    expected = torch.linalg.svdvals(x - x.mean(0))[:6] ** 2 / 899
    torch.testing.assert_close(found.variance, expected, rtol=1e-10, atol=0)


def test_pca_that_does_not_converge_is_computed_at_once(monkeypatch):
    monkeypatch.setattr(projection, "_SMALL", 0)
    monkeypatch.setattr(eigenvectors, "_MOST_STEPS", 1)
    x = vectors(300, 90)
    torch.testing.assert_close(fv.pca(x, 50).variance, torch.linalg.svdvals(x - x.mean(0))[:50] ** 2 / 299)


def test_pca_in_float32(monkeypatch):
    x = vectors(500, 300)
    expected = fv.pca(x, 3)
    monkeypatch.setattr(projection, "_SMALL", 0)
    found = fv.pca(x.float(), 3)
    assert found.coordinates.dtype == torch.float32
    torch.testing.assert_close(found.coordinates.double(), expected.coordinates, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("small", [1024, 0])
@pytest.mark.parametrize("N", [30, 300])
def test_pca_of_fewer_directions_than_asked_for(monkeypatch, small, N):
    monkeypatch.setattr(projection, "_SMALL", small)
    x = vectors(N, 2) @ vectors(2, 80)
    found = fv.pca(x, 10)
    torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(10, dtype=torch.float64))
    assert (found.variance[2:] < 1e-9 * found.variance[0]).all()
    torch.testing.assert_close(found.coordinates @ found.directions + found.mean, x)


def test_pca_of_equal_vectors_is_zero():
    found = fv.pca(torch.full((9, 5), 0.1), 2)
    assert not found.coordinates.any()
    assert not found.share.any()


@pytest.mark.parametrize(
    ("x", "k", "words"),
    [
        (torch.zeros(5), 1, r"vectors should have shape \[N, D\], got \[5\]"),
        (torch.zeros(1, 5), 1, r"vectors should have shape \[N, D\], N 2 or more and D 1 or more, got \[1, 5\]"),
        (torch.zeros(4, 3), 4, "dimensions should be at most 3 for 4 vectors of 3 numbers, got 4"),
        (torch.zeros(4, 3), 0, "dimensions should be at least 1, got 0"),
        (torch.tensor([[0.0], [torch.nan]]), 1, "vectors should be finite, vector 1 is not"),
        (torch.tensor([[torch.inf, 0.0], [1.0, 0.0]]), 1, "vectors should be finite, vector 0 is not"),
    ],
)
def test_pca_refuses(x, k, words):
    with pytest.raises(ValueError, match=words):
        fv.pca(x, k)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "arpack"}, "solver should be one of 'exact', 'randomized', got 'arpack'"),
        ({"oversampling": -1}, "oversampling should be at least 0, got -1"),
        ({"iterations": 0}, "iterations should be at least 1, got 0"),
        ({"seed": -1}, "seed should be at least 0, got -1"),
    ],
)
def test_pca_refuses_options(options, words):
    with pytest.raises(ValueError, match=words):
        fv.pca(torch.rand(5, 3), 1, **options)


def test_pca_of_numbers_whose_squares_float32_cannot_hold():
    x = vectors(60, 20).float()
    found = fv.pca(x * 2.0**80, 3)
    torch.testing.assert_close(found.coordinates, fv.pca(x, 3).coordinates * 2.0**80, rtol=1e-4, atol=1e20)
    torch.testing.assert_close(found.share, fv.pca(x, 3).share)


def test_pca_refuses_other_numbers():
    with pytest.raises(TypeError, match=r"vectors should be float32 or float64, got torch\.bfloat16"):
        fv.pca(torch.zeros(3, 3, dtype=torch.bfloat16))


# ---------------------------------------------------------------------------------------------- randomized pca


def photographs(side: int = 24, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Squares of so many pixels cut from the photographs in the package, as vectors: real ones, of steep variances."""
    pictures = [fv.images.read_image(path) for path in sorted(PHOTOS.glob("*.jpg"))]
    cut = [torch.nn.functional.unfold(picture[None], side, stride=9)[0].T for picture in pictures]
    return torch.cat(cut).to(dtype)


VECTORS = {
    "photographs": photographs,
    "steep": lambda: vectors(2500, 1300) @ torch.diag(torch.linspace(0, -20, 1300, dtype=torch.float64).exp()),
    "like features": lambda: vectors(1500, 1200).float().relu(),
    "flat": lambda: torch.randn(1500, 1100, generator=torch.Generator().manual_seed(2)),
    "more numbers than vectors": lambda: vectors(300, 1400).float(),
    "far from zero": lambda: vectors(1500, 1200).float() + 500,
    "few directions": lambda: vectors(1500, 3) @ vectors(1200, 3, seed=1).T,
}


@cache
def of_kind(name: str) -> torch.Tensor:
    made: torch.Tensor = VECTORS[name]()
    return made


@pytest.mark.parametrize("k", [2, 20])
@pytest.mark.parametrize("name", VECTORS)
def test_randomized_components_hold_nearly_all_the_variance(name, k):
    """What is missing of the variance of the exact ones is no more than a few times what the last iteration added."""
    x = of_kind(name)
    exact, found = fv.pca(x, k), fv.pca(x, k, solver="randomized")
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * float(exact.coordinates.abs().max())}
    torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(k, dtype=x.dtype), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.coordinates, (x - exact.mean) @ found.directions.T, **tolerance)
    torch.testing.assert_close(found.variance, found.coordinates.var(0), rtol=1e-4, atol=1e-9)
    noise = 1e-12 * found.variance[0]
    assert (found.variance[:-1] >= found.variance[1:] - noise).all()
    lost = 1 - float(found.variance.double().sum() / exact.variance.double().sum())
    assert exact.last_gain == 0
    assert -1e-6 < lost <= 2 * found.last_gain + 1e-6
    assert lost < (0.02 if name in ("photographs", "steep", "few directions") else 0.1)  # noise has no few directions


@pytest.mark.parametrize("name", ["photographs", "like features", "flat", "more numbers than vectors"])
@pytest.mark.parametrize("k", [2, 20])
def test_randomized_components_are_no_worse_than_torchs(name, k):
    """torch's hold less variance, with as many columns and products with the covariance (it begins with one)."""
    x = of_kind(name)
    found = fv.pca(x, k, solver="randomized", oversampling=6, iterations=3)
    torch.manual_seed(0)
    theirs = torch.pca_lowrank(x, k + 6, niter=2)[2][:, :k]
    held = ((x - x.mean(0)) @ theirs).double().square().sum() / (len(x) - 1)
    assert found.variance.double().sum() >= (1 - 1e-5) * held


def test_more_iterations_find_more():
    x = of_kind("flat")
    held = [float(fv.pca(x, 5, solver="randomized", iterations=n).share.sum()) for n in (1, 2, 4, 8)]
    assert held == sorted(held)
    assert held[-1] > 0.99 * float(fv.pca(x, 5).share.sum())


def test_a_seed_gives_the_same_components_at_any_number_of_threads():
    x = of_kind("photographs")
    state = torch.get_rng_state()
    expected = fv.pca(x, 5, solver="randomized", seed=3)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = fv.pca(x, 5, solver="randomized", seed=3)
            torch.testing.assert_close(found.coordinates, expected.coordinates, rtol=0, atol=1e-4)  # torch's products
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(fv.pca(x, 5, solver="randomized", seed=4).directions, expected.directions)
    assert torch.equal(torch.get_rng_state(), state)


def test_randomized_components_of_few_numbers_are_the_exact_ones():
    x = vectors(300, 40)
    assert torch.equal(fv.pca(x, 5, solver="randomized").directions, fv.pca(x, 5).directions)


class LargestTensor(TorchDispatchMode):
    """How many numbers the largest tensor has that is made within the block."""

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__()
        self.numbers, self._given = 0, x.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() != self._given:
                self.numbers = max(self.numbers, each.untyped_storage().nbytes() // 8)
        return made


@pytest.mark.parametrize("solver", ["exact", "randomized"])
@pytest.mark.parametrize("far", [0, 1000])
def test_vectors_are_not_copied(solver, far):
    x = torch.randn(40_000, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + far
    with LargestTensor(x) as largest:
        fv.pca(x, 2, solver=solver, oversampling=4, iterations=1)
    assert largest.numbers <= projection.Centred(x)._rows * 64 < x.numel() / 2


# --------------------------------------------------------------------------------------------------------- t-SNE


def groups(D: int) -> torch.Tensor:
    """Three groups of 15, far from each other."""
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(3, D, generator=generator)
    return centres.repeat_interleave(15, 0) + torch.randn(45, D, generator=generator)


@pytest.mark.parametrize("D", [1, 3, 80])
def test_tsne_keeps_groups_together(D):
    xy = fv.tsne(groups(D), perplexity=8, engine="sklearn")
    assert xy.shape == (45, 2)
    assert xy.dtype == torch.float32
    neighbours, _ = nearest(xy, 5)
    assert (neighbours // 15 == (torch.arange(45) // 15)[:, None]).all()


def test_tsne_is_the_same_again_and_leaves_random_states():
    x = groups(60)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = fv.tsne(x, engine="sklearn")
    torch.testing.assert_close(fv.tsne(x, engine="sklearn"), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_tsne_lowers_the_perplexity_for_few(monkeypatch):
    """A third of the other vectors, where that is less than 30."""
    asked: list[float] = []

    def run(data, start, perplexity, seed):
        asked.append(perplexity)
        return start.numpy()

    monkeypatch.setattr(projection, "_by_sklearn", run)
    for N in (4, 31, 200):
        fv.tsne(vectors(N, 3), engine="sklearn")
    assert asked == [1, 10, 30]


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (torch.rand(3, 5), {}, "vectors should be at least 4 for t-SNE, got 3; principal components need 2"),
        (
            torch.rand(9, 5),
            {"perplexity": 9},
            "perplexity should be at least 1 and below the number of vectors, 9, got 9",
        ),
        (torch.rand(9, 5), {"perplexity": 0.5}, "perplexity should be at least 1"),
        (torch.ones(9, 5), {}, "vectors should not all be the same for t-SNE, and these 9 are"),
        (torch.rand(9, 5), {"engine": "umap"}, "engine should be one of 'auto', 'sklearn', 'openTSNE', got 'umap'"),
        (torch.rand(9, 5), {"seed": -1}, "seed should be at least 0, got -1"),
    ],
)
def test_tsne_refuses(x, options, words):
    with pytest.raises(ValueError, match=words):
        fv.tsne(x, **options)


@pytest.mark.parametrize(
    ("engine", "module", "words"),
    [
        ("sklearn", "sklearn.manifold", r't-SNE needs scikit-learn: pip install "fastviz\[maps\]"'),
        ("openTSNE", "openTSNE", r'engine openTSNE is not installed: pip install "fastviz\[tsne\]"'),
    ],
)
def test_an_engine_that_is_not_installed(monkeypatch, engine, module, words):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=words):
        fv.tsne(groups(4), engine=engine)


def test_opentsne():
    pytest.importorskip("openTSNE")
    xy = fv.tsne(groups(80), perplexity=8, engine="openTSNE")
    neighbours, _ = nearest(xy, 5)
    assert (neighbours // 15 == (torch.arange(45) // 15)[:, None]).all()
    torch.testing.assert_close(fv.tsne(groups(80), perplexity=8), xy)
