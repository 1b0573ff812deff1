"""`gram` and `gram_loss` against their definition, on every device, dtype and memory order."""

from __future__ import annotations

import pytest
import torch

from fastviz import ops, reference
from tests.ops.common import SHAPES, compare, devices, dtypes, make, orders


def test_gram_by_hand():
    features = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    assert ops.gram(features).tolist() == [[[5, 2], [2, 1]]]
    assert ops.gram(features, "hw").tolist() == [[[2.5, 1], [1, 0.5]]]
    assert ops.gram(features, "chw").tolist() == [[[1.25, 0.5], [0.5, 0.25]]]
    assert ops.gram_loss(features, torch.ones(1, 2, 2)).tolist() == [16 + 1 + 1 + 0]


GRAM_SHAPES = [*SHAPES, (2, 33, 9, 31), (1, 70, 20, 20), (1, 130, 5, 3), (2, 8, 300)]


@devices
@dtypes
@orders
@pytest.mark.parametrize("shape", GRAM_SHAPES, ids=str)
def test_gram(shape, order, dtype, device):
    features = make(shape, dtype, device, order)
    for normalize in ("none", "hw", "chw"):
        scale = 1.0 if normalize != "none" else 1 / max(features[0].numel(), 1) ** 0.5 if len(features) else 1.0
        compare(
            lambda f: ops.gram(f, normalize) * scale,  # noqa: B023
            lambda f: reference.gram(f, normalize) * scale,  # noqa: B023
            features,
            dtype=dtype,
        )


@devices
@dtypes
@orders
@pytest.mark.parametrize("shape", GRAM_SHAPES, ids=str)
@pytest.mark.parametrize("targets", ["one", "each"])
def test_gram_loss(targets, shape, order, dtype, device):
    features = make(shape, dtype, device, order)
    target = make((1 if targets == "one" else shape[0], shape[1], shape[1]), dtype, device)  # not symmetric
    scale = 1 / max(shape[1], 1) ** 2
    compare(
        lambda f: ops.gram_loss(f, target, "hw") * scale,
        lambda f: reference.gram_loss(f, target.double(), "hw") * scale,
        features,
        dtype=dtype,
    )


def test_gram_bad_input():
    with pytest.raises(ValueError, match=r"features should have shape \[N, C, H, W\] or \[N, C, L\], got \[2, 2\]"):
        ops.gram(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="normalize should be one of 'none', 'hw', 'chw', got 'c'"):
        ops.gram(torch.zeros(1, 2, 2), "c")
    with pytest.raises(ValueError, match=r"target should have shape \[3 or 1, 2, 2\], got \[2, 2, 2\]"):
        ops.gram_loss(torch.zeros(3, 2, 4), torch.zeros(2, 2, 2))
    with pytest.raises(TypeError, match="target should have the dtype of features"):
        ops.gram_loss(torch.zeros(3, 2, 4), torch.zeros(1, 2, 2).double())
    with pytest.raises(ValueError, match="target should not require a gradient"):
        ops.gram_loss(torch.zeros(3, 2, 4), torch.zeros(1, 2, 2, requires_grad=True))


def test_gram_has_a_second_derivative():
    assert torch.autograd.gradgradcheck(lambda x: ops.gram(x, "hw"), (make((1, 2, 3, 2)).requires_grad_(),))
