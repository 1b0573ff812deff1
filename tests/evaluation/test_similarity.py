"""Similarity and complexity of maps: SciPy, definitions written out, answers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastviz.evaluation import (
    agreement,
    complexity,
    hog_correlation,
    rank_correlation,
    sparseness,
    ssim,
    top_k_intersection,
)

f64 = torch.float64


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 20, 17, dtype=f64, generator=generator)
    return a, a + torch.randn(4, 20, 17, dtype=f64, generator=generator)


def test_rank_correlation_is_scipys(pair):
    stats = pytest.importorskip("scipy.stats")
    a, b = pair
    ties = (3 * a).round()
    for first, second in ((a, b), (ties, b), (ties, (2 * b).round())):
        expected = [
            float(stats.spearmanr(x.flatten(), y.flatten()).statistic) for x, y in zip(first, second, strict=True)
        ]
        assert rank_correlation(first, second).tolist() == pytest.approx(expected)
        expected = [
            float(stats.spearmanr(x.abs().flatten(), y.abs().flatten()).statistic)
            for x, y in zip(first, second, strict=True)
        ]
        assert rank_correlation(first, second, absolute=True).tolist() == pytest.approx(expected)
    assert rank_correlation(a, torch.zeros_like(a)).isnan().all()
    torch.testing.assert_close(rank_correlation(a, a.exp()), torch.ones(4, dtype=f64))


def ssim_by_definition(a: np.ndarray, b: np.ndarray, window: int = 11) -> float:
    a, b = ((m - m.min()) / (m.max() - m.min()) for m in (a, b))
    place = np.arange(window) - window // 2
    line = np.exp(-0.5 * (place / 1.5) ** 2)
    kernel = np.outer(line, line) / np.outer(line, line).sum()
    found = []
    for row in range(a.shape[0] - window + 1):
        for column in range(a.shape[1] - window + 1):
            x, y = (m[row : row + window, column : column + window] for m in (a, b))
            mx, my = (kernel * x).sum(), (kernel * y).sum()
            vx, vy = (kernel * (x - mx) ** 2).sum(), (kernel * (y - my) ** 2).sum()
            cov = (kernel * (x - mx) * (y - my)).sum()
            upper = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
            found.append(upper / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(found))


def test_ssim_is_the_definition(pair):
    a, b = pair
    expected = [ssim_by_definition(x.numpy(), y.numpy()) for x, y in zip(a, b, strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(expected)
    torch.testing.assert_close(ssim(a, a), torch.ones(4, dtype=f64))
    # too small for the window: the largest odd one that fits
    assert ssim(a[:, :4, :4], b[:, :4, :4]).tolist() == pytest.approx(
        [ssim_by_definition(x[:4, :4].numpy(), y[:4, :4].numpy(), 3) for x, y in zip(a, b, strict=True)]
    )
    assert ssim(a, b).tolist() == pytest.approx(ssim(7 * a - 2, b).tolist())


def test_hog_by_hand():
    """Stripes across and down have gradients in other bins; a brighter copy has the same histogram."""
    across = torch.zeros(1, 12, 12)
    across[:, :, ::4] = 1
    down = across.transpose(1, 2)
    options = {"cell": 4, "block": 2}
    assert float(hog_correlation(across, across, **options)) == pytest.approx(1)
    assert float(hog_correlation(across, 3 * across + 1, **options)) == pytest.approx(1)
    assert float(hog_correlation(across, down, **options)) < 0
    assert hog_correlation(across, torch.zeros(1, 12, 12), **options).isnan().all()
    with pytest.raises(ValueError, match="at least 48 pixels per side for 3 cells of 16"):
        hog_correlation(across, down)


def test_top_k(pair):
    a = torch.tensor([[[4.0, 3.0, 2.0, 1.0]]])
    b = torch.tensor([[[4.0, 1.0, 3.0, 2.0]]])
    assert top_k_intersection(a, b, k=2).tolist() == [0.5]
    assert top_k_intersection(a, b, k=0.5).tolist() == [0.5]
    assert top_k_intersection(a, -b, k=1).tolist() == [0.0]
    assert top_k_intersection(a, -a, k=1, absolute=True).tolist() == [1.0]
    random = torch.rand(2, 300, 30, 30)
    assert float(top_k_intersection(random[0], random[1], k=0.1).mean()) == pytest.approx(0.1, abs=0.02)
    with pytest.raises(ValueError, match="at most the number of pixels, 4, got 5"):
        top_k_intersection(a, b, k=5)


def test_agreement_of_methods(pair):
    a, b = pair
    found = agreement({"a": a, "b": b, "coarse": a[:, ::2, ::2]}, similarities=("rank", "ssim"))
    assert found.methods == ("a", "b", "coarse")
    torch.testing.assert_close(found.values["rank"][0, 1], rank_correlation(a, b))
    torch.testing.assert_close(found.values["ssim"][1, 0], ssim(a, b))
    assert found.mean("rank").shape == (3, 3)
    torch.testing.assert_close(
        found.with_others("rank")[0], (found.values["rank"][0, 1] + found.values["rank"][0, 2]) / 2
    )
    with pytest.raises(ValueError, match="similarity 'rang' is not known; nearest: rank"):
        agreement({"a": a}, similarities=("rang",))


def test_sparseness_and_complexity_by_hand():
    maps = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, -3.0]], [[1.0, -2.0], [3.0, 4.0]]])
    # Gini of 1, 2, 3, 4: (-3·1 - 1·2 + 1·3 + 3·4) / (4 · 10)
    assert sparseness(maps).tolist() == pytest.approx([0, 0.75, 0.25])
    shares = [0.1, 0.2, 0.3, 0.4]
    entropy = -sum(p * math.log(p) for p in shares)
    assert complexity(maps).tolist() == pytest.approx([math.log(4), 0, entropy])
    assert sparseness(torch.zeros(1, 3, 3)).isnan().all()
    assert complexity(torch.zeros(1, 3, 3)).isnan().all()
    # even noise has a Gini index of one third
    assert float(sparseness(torch.rand(20, 64, 64)).mean()) == pytest.approx(1 / 3, abs=0.01)
    assert sparseness(torch.rand(0, 3, 3)).shape == (0,)
    with pytest.raises(ValueError, match="maps should be finite"):
        sparseness(torch.full((1, 2), torch.inf))


def test_what_is_refused(pair):
    a, b = pair
    with pytest.raises(ValueError, match="second should have the shape of first"):
        rank_correlation(a, b[:, 1:])
    with pytest.raises(ValueError, match="second should be finite"):
        ssim(a, b / 0)
    with pytest.raises(ValueError, match="window should be odd, got 4"):
        ssim(a, b, window=4)
