"""Nearest neighbours equal brute force in float64, whatever way they were found."""

from __future__ import annotations

import pytest
import torch

from fastviz.vectors import nearest_neighbours as module
from fastviz.vectors.nearest_neighbours import nearest


def brute_force(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    distances = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    values, indices = distances.sort(dim=1, stable=True)
    return indices[:, :k], values[:, :k]


def compare(x: torch.Tensor, k: int) -> None:
    indices, distances = nearest(x, k)
    expected, values = brute_force(x, k)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(distances, values, rtol=0, atol=0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


CASES = {
    "random": random(200, 20),
    "far from the origin": random(200, 20) + 1e4,
    "ties": random(200, 2).round(),
    "copies": random(20, 9).repeat(6, 1),
    "all the same": torch.ones(40, 5),
    "one among large ones": torch.cat([random(99, 8), 1e6 * torch.ones(1, 8)]),
    "float64": random(200, 20).double() + 1e9,
    "bfloat16": random(60, 20).bfloat16(),
    "many at one distance": torch.cat([torch.eye(90), torch.zeros(1, 90)]),
    "too small for float32": 1e-23 * random(80, 6),
    "small among large": torch.cat([1e-21 * random(60, 6), random(60, 6)]),
    "squares beyond float32": 1e25 * random(80, 6),
    "sums beyond float32": 1e38 * random(80, 6).sign(),
}


def test_by_hand():
    """On a line at 0, 3, 1 and 3: the copies find each other, and of two at one distance the first."""
    indices, distances = nearest(torch.tensor([[0.0], [3.0], [1.0], [3.0]]), 3)
    assert indices.tolist() == [[2, 1, 3], [3, 2, 0], [0, 1, 3], [1, 2, 0]]
    assert distances.tolist() == [[1, 3, 3], [0, 2, 3], [1, 2, 2], [0, 2, 3]]
    assert distances.dtype == torch.float64


@pytest.mark.parametrize("k", [1, 7, 39])
@pytest.mark.parametrize("name", CASES)
def test_brute_force(name, k):
    compare(CASES[name], k)


@pytest.mark.parametrize("name", CASES)
def test_blocks_do_not_matter(monkeypatch, name):
    monkeypatch.setattr(module, "_SIDE", 23)
    monkeypatch.setattr(module, "_NUMBERS", 50)
    compare(CASES[name], 5)


@pytest.mark.parametrize("side", [23, 2048])
@pytest.mark.parametrize("name", ["random", "ties", "far from the origin", "all the same"])
def test_candidates_that_may_not_be_enough(monkeypatch, name, side):
    """Without spare candidates every query is open, and looks at all that may be near."""
    monkeypatch.setattr(module, "_SPARE", 0)
    monkeypatch.setattr(module, "_SIDE", side)
    compare(CASES[name], 5)


@pytest.mark.parametrize("name", ["random", "ties", "copies", "one among large ones"])
def test_rounding_of_the_products_cannot_lose_a_neighbour(monkeypatch, name):
    """Products good to two digits only, in bfloat16, with a bound that says so."""
    monkeypatch.setattr(module, "_product_dtype", lambda x: torch.bfloat16)
    compare(CASES[name], 5)


@pytest.mark.parametrize("D", [3, 300, 5000])
def test_bounds_hold_and_are_close(D):
    """Squared distances lie between the bounds, which are apart by the rounding of D terms and no more."""
    x = random(120, D) + 5
    bounds = module._bounds(x)
    every = torch.arange(120)
    lower = bounds.below(every, bounds.centred, slice(0, 120)).double()
    upper = bounds.above(every, every.expand(120, -1), lower)
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    off = ~torch.eye(120, dtype=torch.bool)
    assert bounds.centred.dtype == torch.float32
    assert (lower[off] <= exact[off]).all()
    assert (exact[off] <= upper[off]).all()
    assert ((upper - lower)[off] < 3 * (D + 32) * 2**-24 * 2 * exact[off].max()).all()


def test_few_are_compared_again(monkeypatch):
    """Of vectors whose distances differ, little more than the k nearest are compared in float64."""
    x = random(500, 64)
    looked: list[int] = []
    real = module._distances

    def counted(a, b):
        looked.append(len(a) * b.shape[1])
        return real(a, b)

    monkeypatch.setattr(module, "_distances", counted)
    nearest(x, 10)
    assert 5000 <= sum(looked) < 6000


def test_the_number_of_threads_does_not_matter():
    x = random(300, 40)
    expected = nearest(x, 6)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for mine, other in zip(nearest(x, 6), expected, strict=True):
                assert torch.equal(mine, other)
    finally:
        torch.set_num_threads(before)


def test_some_queries():
    x = CASES["random"]
    indices, distances = nearest(x, 4, queries=torch.tensor([7, 0, 7]))
    expected, values = brute_force(x, 4)
    assert torch.equal(indices, expected[[7, 0, 7]])
    assert torch.equal(distances, values[[7, 0, 7]])
    indices, distances = nearest(x, 4, queries=torch.tensor([], dtype=torch.int64))
    assert indices.shape == distances.shape == (0, 4)


@pytest.mark.parametrize(
    ("x", "k", "options", "words"),
    [
        (torch.zeros(4), 1, {}, r"vectors should have shape \[N, D\], got \[4\]"),
        (torch.zeros(4, 2), 4, {}, "k should be at most 3, one less than the number of vectors, got 4"),
        (torch.zeros(4, 2), 0, {}, "k should be at least 1, got 0"),
        (torch.tensor([[0.0], [torch.inf]]), 1, {}, "vectors should be finite, vector 1 is not"),
        (torch.tensor([[0.0], [torch.nan]]).double(), 1, {}, "vectors should be finite, vector 1 is not"),
        (torch.tensor([[0.0], [1e200]], dtype=torch.float64), 1, {}, "vectors should be at most 1e150 from their mean"),
        (torch.zeros(4, 2), 1, {"queries": torch.tensor([4])}, "queries should be 0 to 3, got 4 to 4"),
        (torch.zeros(4, 2), 1, {"queries": torch.tensor([[1]])}, r"queries should have shape \[Q\], got \[1, 1\]"),
    ],
)
def test_refuses(x, k, options, words):
    with pytest.raises(ValueError, match=words):
        nearest(x, k, **options)


def test_refuses_other_types():
    with pytest.raises(TypeError, match=r"queries should be int64, got torch\.float32"):
        nearest(torch.zeros(4, 2), 1, queries=torch.zeros(1))
    with pytest.raises(TypeError, match="vectors should be a floating-point tensor"):
        nearest(torch.zeros(4, 2, dtype=torch.int64), 1)
