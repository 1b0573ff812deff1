"""fastviz's methods as Quantus calls them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

import fastviz as fv
from fastviz.compat.quantus import explain


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 3)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, 11, 11))  # float64, as arrays often are


def test_methods_by_name_and_as_functions(model: nn.Module, x: np.ndarray) -> None:
    images, y = torch.tensor(x).float(), np.array([2, 0])
    found = explain(model, x, y, method="integrated_gradients", steps=4, device="cpu")
    expected = fv.integrated_gradients(model, images, torch.tensor(y), steps=4).attribution.sum(1, keepdim=True)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-7)
    assert found.dtype == np.float32
    cam = explain(model, x, y, method="grad_cam", layer="2")
    assert cam.shape == (2, 1, 11, 11)
    tunnel = functools.partial(fv.noise_tunnel, fv.saliency, samples=3)
    one = explain(model, x[0], 2, method=lambda m, images, k: fv.saliency(m, images, k))
    np.testing.assert_allclose(one[0, 0], fv.saliency(model, images[:1], 2)[0].numpy(), rtol=1e-6)
    assert explain(model, x, y, method=tunnel).shape == (2, 1, 11, 11)


def test_as_a_measure_of_quantus_would_use_it(model: nn.Module, x: np.ndarray) -> None:
    def evaluate(explain_func, explain_func_kwargs):
        return explain_func(model=model, inputs=x, targets=np.array([1, 1]), **explain_func_kwargs)

    assert evaluate(explain, {"method": "saliency", "device": None}).shape == (2, 1, 11, 11)


def test_bad_arguments(model: nn.Module, x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="method 'salience' is not known; nearest: saliency"):
        explain(model, x, [0, 1], method="salience")
    with pytest.raises(TypeError, match="method should be a name or a function, got int"):
        explain(model, x, [0, 1], method=3)  # type: ignore[arg-type]
