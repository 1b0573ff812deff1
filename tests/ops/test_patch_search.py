"""`patch_search` against its definition, on every device, dtype and memory order."""

from __future__ import annotations

import pytest
import torch

from fastviz import ops, reference
from tests.ops.common import devices, dtypes, make, orders, patch_search_call


def test_patch_search_by_hand():
    sample = torch.tensor([[[0.0, 1.0, 3.0], [2.0, 5.0, 4.0]]])
    neighbourhood = torch.tensor([[[1.0, 9.0], [2.0, 3.0]]])
    mask, weights = torch.tensor([[True, False], [True, True]]), torch.tensor([[2.0, 7.0], [1.0, 1.0]])
    # Left: (2·1² + 1·0² + 1·2²) / 4; right: (2·0² + 1·3² + 1·1²) / 4.
    assert ops.patch_search(sample, neighbourhood, mask, weights).tolist() == [[1.5, 2.5]]
    assert ops.patch_search(sample, neighbourhood, torch.zeros_like(mask), weights).tolist() == [[0.0, 0.0]]
    # Channels add up; they are not averaged.
    assert ops.patch_search(sample.repeat(2, 1, 1), neighbourhood.repeat(2, 1, 1), mask, weights).tolist() == [[3, 5]]


SEARCHES = [  # sample, then neighbourhoods: rows of many, few and no windows beside the first
    ((3, 20, 45), (4, 5, 5)),
    ((1, 7, 9), (2, 7, 9)),
    ((2, 30, 12), (3, 3, 4)),
    ((4, 36, 40), (1, 33, 35)),
    ((0, 5, 5), (2, 3, 3)),
    ((3, 5, 5), (0, 3, 3)),
]


@devices
@dtypes
@orders
@pytest.mark.parametrize(("shape", "windows"), SEARCHES, ids=str)
def test_patch_search(shape, windows, order, dtype, device):
    number, *size = windows
    sample, weights = make(shape, dtype, device, order), make(tuple(size), dtype, device).abs()
    neighbourhood = make((number, shape[0], *size), dtype, device, order)
    mask = torch.rand(number, *size).to(device) < 0.6
    distances = ops.patch_search(sample, neighbourhood, mask, weights)
    wanted = reference.patch_search(sample.double(), neighbourhood.double(), mask, weights.double())
    tolerance = {"rtol": 1e-12, "atol": 0} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 0}
    torch.testing.assert_close(distances.double(), wanted, **tolerance)
    assert distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for one, known, distance in zip(neighbourhood, mask, distances, strict=True):
        torch.testing.assert_close(ops.patch_search(sample, one, known, weights), distance, rtol=0, atol=0)


@devices
def test_patch_search_of_a_part_of_the_sample_is_exactly_zero(device):
    sample = make((3, 30, 40), torch.float32, device) + 100
    part = sample[:, 8:19, 20:31].clone()
    mask = torch.ones(11, 11, dtype=torch.bool, device=device)
    mask[:3] = False
    part[:, :3] = float("nan")
    distances = ops.patch_search(sample, part, mask, torch.rand(11, 11).to(device))
    assert distances[8, 20] == 0
    assert (distances > 0).sum() == distances.numel() - 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sample": torch.zeros(1, 3, 5, 5)}, ValueError, r"sample should have shape \[C, H, W\], got \[1, 3, 5, 5\]"),
        (
            {"neighbourhood": torch.zeros(2, 3, 3)},
            ValueError,
            "neighbourhood should have the 3 channels of sample, got 2",
        ),
        (
            {"neighbourhood": torch.zeros(3, 6, 3)},
            ValueError,
            r"at least one pixel and at most the \[5, 5\] of sample, got \[6, 3\]",
        ),
        ({"neighbourhood": torch.zeros(3, 3, 0)}, ValueError, r"at least one pixel .* got \[3, 0\]"),
        ({"neighbourhood": torch.zeros(3, 3, 3).half()}, TypeError, "neighbourhood should have the dtype of sample"),
        ({"mask": torch.ones(3, 3)}, TypeError, "mask should be a tensor of bool, got torch.float32"),
        ({"mask": torch.ones(2, 3) > 0}, ValueError, r"mask should have shape \[3, 3\], got \[2, 3\]"),
        (
            {"neighbourhood": torch.zeros(2, 3, 3, 3)},
            ValueError,
            r"mask should have shape \[2, 3, 3\], got \[3, 3\]",
        ),
        ({"weights": torch.ones(3, 2)}, ValueError, r"weights should have shape \[3, 3\], got \[3, 2\]"),
        ({"weights": torch.ones(3, 3).double()}, TypeError, "weights should have the dtype of sample"),
        ({"weights": -torch.ones(3, 3)}, ValueError, "^weights should be finite and at least 0, got -1$"),
        ({"weights": torch.full((3, 3), torch.nan)}, ValueError, "^weights should be finite and at least 0, got nan$"),
        ({"weights": torch.full((3, 3), torch.inf)}, ValueError, "^weights should be finite and at least 0, got inf$"),
    ],
)
def test_patch_search_bad_input(change, error, message):
    arguments = {
        "sample": torch.zeros(3, 5, 5),
        "neighbourhood": torch.zeros(3, 3, 3),
        "mask": torch.ones(3, 3) > 0,
        "weights": torch.ones(3, 3),
        **change,
    }
    with pytest.raises(error, match=message):
        ops.patch_search(**arguments)


def test_patch_search_has_no_derivative():
    distances = patch_search_call(make((2, 3, 7, 6)).requires_grad_())
    with pytest.raises(RuntimeError, match="patch_search has no derivative"):
        distances.sum().backward()
