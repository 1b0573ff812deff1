"""Similarity to a vector, by hand and beside embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fastviz as fv

f64 = torch.float64


@pytest.mark.parametrize(
    ("features", "vector", "expected"),
    [
        (torch.tensor([[3.0, 4.0], [4.0, -3.0]]), torch.tensor([0.0, 2.0]), [0.8, -0.6]),
        (torch.tensor([[3.0, 4.0], [4.0, -3.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]]), [0.8, 0.8]),
        (torch.tensor([[[[1.0, 5.0]], [[4.0, 4.0]]]]), torch.tensor([0.0, 2.0]), [0.8]),  # maps: means 3 and 4
        (torch.tensor([[[[1.0, 4.0], [5.0, 4.0], [3.0, 4.0]]]]), torch.tensor([0.0, 2.0]), [0.8]),  # [N, H, W, C]
        (torch.tensor([[[1.0, 4.0], [5.0, 4.0], [3.0, 4.0]]]), torch.tensor([0.0, 2.0]), [0.8]),  # tokens
        (torch.tensor([[[[3.0, 4.0, 0.0]]]]), torch.tensor([3.0, 0.0, 0.0]), [0.6]),  # all values
    ],
)
def test_values(features: torch.Tensor, vector: torch.Tensor, expected: list[float]) -> None:
    assert fv.similarity(vector, "a").values(None, {"a": features}).tolist() == pytest.approx(expected)
    assert fv.similarity(vector).values(features, {}).tolist() == pytest.approx(expected)


def test_with_the_vectors_of_an_embedding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).double()
    x = torch.rand(3, 3, 10, 10, dtype=f64)
    vectors = fv.embedding(model, x, "1").vectors
    target = fv.similarity(vectors[0], "1")
    found = fv.occlusion(model, x, target, window=5)
    assert found.baseline[0] == pytest.approx(1.0)
    torch.testing.assert_close(found.baseline, nn.functional.cosine_similarity(vectors, vectors[:1]))
    leaf = x.clone().requires_grad_()
    features = model[:2](leaf).mean((2, 3))
    (expected,) = torch.autograd.grad(nn.functional.cosine_similarity(features, vectors[:1]).sum(), leaf)
    torch.testing.assert_close(fv.input_gradient(model, x, target), expected)


@pytest.mark.usefixtures("traced")
def test_occlusion_of_the_similarity_of_an_output_is_incremental() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).double()
    x = torch.rand(2, 3, 24, 24, dtype=f64)
    target = fv.similarity(torch.randn(2, 4, dtype=f64))
    found = fv.occlusion(model, x, target, window=6, stride=6)
    dense = fv.occlusion(model, x, target, window=6, stride=6, trace="never")
    assert found.stats["path"] == "incremental"
    torch.testing.assert_close(found.scores, dense.scores)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fv.similarity([1.0]), TypeError, "vector should be a tensor, got list"),
        (lambda: fv.similarity(torch.zeros(3)), ValueError, "vector should be finite and not zero"),
        (lambda: fv.similarity(torch.ones(3), 3), TypeError, "layer should be a dotted module name, got int"),
        (
            lambda: fv.similarity(torch.ones(3)).values(torch.rand(1, 4), {}),
            ValueError,
            r"vector should have as many numbers as the features of the model, \[1, 4\], got 3",
        ),
        (
            lambda: fv.similarity(torch.ones(3)).values({"a": torch.rand(1, 3)}, {}),
            TypeError,
            r"features \[N, D\] for a similarity, got a dictionary of 'a': name a layer",
        ),
        (
            lambda: fv.similarity(torch.ones(2, 3)).values(torch.rand(3, 3), {}),
            ValueError,
            r"vector should be \[D\], or one per sample, 3, got \[2, 3\]",
        ),
    ],
)
def test_what_it_refuses(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
