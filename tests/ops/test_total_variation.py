"""`total_variation` against its definition, on every device, dtype and memory order."""

from __future__ import annotations

import pytest
import torch

from fastviz import ops, reference
from tests.ops.common import compare, devices, dtypes, make, orders, shapes

VARIATIONS = [{"norm": "isotropic", "beta": b} for b in (1.0, 2.0, 2.5, 3.0, 1.7)] + [{"norm": "l1"}, {"norm": "l2"}]


def test_total_variation_by_hand():
    x = torch.tensor([[[[0.0, 3.0], [4.0, 0.0]]]])
    assert ops.total_variation(x).tolist() == [25.0]
    assert ops.total_variation(x, beta=1.0).tolist() == [5.0]
    assert ops.total_variation(x, norm="l1").tolist() == [7.0]
    # All four pixels: (3, 4), then only down 3 from the upper right, then only right 4 from the lower left.
    assert ops.total_variation(x, beta=1.0, border="zero").tolist() == [12.0]
    assert ops.total_variation(x, norm="l1", border="zero").tolist() == [14.0]
    assert ops.total_variation(x, norm="l2", border="zero").tolist() == [50.0]
    board = (torch.arange(16).view(4, 4) + torch.arange(4).view(4, 1)) % 2
    assert ops.total_variation(board[None, None].double(), beta=2.0, reduction="pixel_mean").tolist() == [2.0]


@devices
@dtypes
@orders
@shapes
@pytest.mark.parametrize("border", ["crop", "zero"])
def test_total_variation(border, shape, order, dtype, device):
    x = make(shape, dtype, device, order)
    for options in VARIATIONS:
        if dtype in (torch.float16, torch.bfloat16) and options.get("beta") in (1.0, 1.7):
            continue  # slopes near 0 are steep: inputs rounded to few bits are compared with themselves in float64
        for reduction in ("none", "pixel_mean"):
            options = {**options, "border": border, "reduction": reduction}
            compare(
                lambda v: ops.total_variation(v, **options),  # noqa: B023
                lambda v: reference.total_variation(v, **options),  # noqa: B023
                x,
                dtype=dtype,
            )


def test_total_variation_reductions():
    x = make((3, 2, 5, 6))
    each = ops.total_variation(x)
    torch.testing.assert_close(ops.total_variation(x, reduction="sum"), each.sum())
    torch.testing.assert_close(ops.total_variation(x, reduction="mean"), each.mean())


def test_total_variation_gradient_at_flat_places_is_zero():
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    for options in VARIATIONS:
        (grad,) = torch.autograd.grad(ops.total_variation(x, **options).sum(), x)
        assert not grad.any()


def test_total_variation_bad_input():
    x = torch.zeros(1, 1, 3, 3)
    with pytest.raises(ValueError, match="norm should be one of 'isotropic', 'l1', 'l2', got 'tv'"):
        ops.total_variation(x, norm="tv")
    with pytest.raises(ValueError, match="border should be one of 'crop', 'zero', got 'reflect'"):
        ops.total_variation(x, border="reflect")
    with pytest.raises(ValueError, match="beta should be finite and above 0, got 0"):
        ops.total_variation(x, beta=0)
    with pytest.raises(ValueError, match=r"x should have shape \[N, C, H, W\], got \[3, 3\]"):
        ops.total_variation(x[0, 0])
