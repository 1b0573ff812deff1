"""`splice` against its definition, on every device, dtype and memory order."""

from __future__ import annotations

import pytest
import torch

from fastviz import ops, reference
from tests.ops.common import devices, dtypes, make, orders


@devices
@dtypes
@orders
def test_splice(order, dtype, device):
    """Windows inside, at each border, sticking out, and crops that cover all, part or nothing of them."""
    origins = torch.tensor([[0, 0], [-2, -3], [5, 4], [3, -1], [1, 1], [20, 20], [-9, 0]], device=device)
    crops = torch.tensor([[0, 0], [-1, -1], [4, 4], [3, 0], [-3, -3], [2, 2], [0, 0]], device=device)
    clean = make((3, 4, 8, 9), dtype, device, order)
    dirty = make((7, 4, 5, 6), dtype, device, order)
    index = torch.tensor([2, 0, 1, 1, 0, 2, 0], device=device)
    for size in ((4, 6), (12, 13), (1, 1)):
        output = ops.splice(clean, dirty, crops, origins, size, index, 0.25)
        expected = reference.splice(clean, dirty, crops, origins, size, index, 0.25)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_splice_of_signals_and_volumes_by_hand():
    at = torch.tensor([[1]])
    signal, crop = torch.ones(1, 1, 3), torch.full((1, 1, 1), 5.0)
    assert ops.splice(signal, crop, at, at - 2, (5,)).tolist() == [[[0, 1, 5, 1, 0]]]
    volume, corner = torch.ones(1, 1, 2, 2, 2), torch.tensor([[1, 0, 1]])
    output = ops.splice(volume, crop.view(1, 1, 1, 1, 1), corner, corner - 1, (2, 2, 3))
    assert output[0, 0].tolist() == [[[0, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 5, 0]]]


@devices
@dtypes
@orders
@pytest.mark.parametrize("axes", [1, 3])
def test_splice_of_signals_and_volumes(axes, order, dtype, device):
    origins = torch.tensor([[0, 0, 0], [-2, -3, -1], [3, 5, 4], [2, 3, -1], [1, 1, 1], [20, 20, 20], [0, -9, 0]])
    crops = torch.tensor([[0, 0, 0], [-1, -1, -1], [2, 4, 4], [2, 3, 0], [-3, -3, -3], [1, 2, 2], [1, 0, 0]])
    origins, crops = origins[:, 3 - axes :].to(device), crops[:, 3 - axes :].to(device)
    clean = make((3, 4, *(4, 6, 7)[3 - axes :]), dtype, device, order)
    dirty = make((7, 4, *(2, 3, 3)[3 - axes :]), dtype, device, order)
    index = torch.tensor([2, 0, 1, 1, 0, 2, 0], device=device)
    for size in ((3, 4, 5), (6, 9, 10), (1, 1, 1)):
        output = ops.splice(clean, dirty, crops, origins, size[3 - axes :], index, 0.25)
        expected = reference.splice(clean, dirty, crops, origins, size[3 - axes :], index, 0.25)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [(0, 4, 2, 2), (2, 0, 2, 2), (2, 4, 0, 3)])
def test_splice_of_nothing(sizes):
    windows, channels, h, w = sizes
    at = torch.zeros(windows, 2, dtype=torch.long)
    clean, dirty = make((1, channels, 5, 5)), make((windows, channels, h, w))
    output = ops.splice(clean, dirty, at, at, (3, 3))
    torch.testing.assert_close(output, reference.splice(clean, dirty, at, at, (3, 3)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dirty": torch.zeros(2, 4, 2, 2)}, ValueError, "dirty should have the 3 channels of clean, got 4"),
        ({"dirty": torch.zeros(2, 3, 2, 2).half()}, TypeError, "dirty should have the dtype of clean"),
        ({"dirty_origin": torch.zeros(1, 2, dtype=torch.long)}, ValueError, r"dirty_origin should have shape \[2, 2\]"),
        ({"window_origin": torch.zeros(2, 2)}, TypeError, "window_origin should be a tensor of integers"),
        ({"window_size": (3, -1)}, ValueError, "window_size should be a height and a width of at least 0"),
        (
            {"clean": torch.zeros(1, 3, 5, 5, 5), "dirty": torch.zeros(2, 3, 2, 2, 2)},
            ValueError,
            r"dirty_origin should have shape \[2, 3\], got \[2, 2\]",
        ),
        (
            {"clean": torch.zeros(1, 3, 5)},
            ValueError,
            r"dirty should have shape \[N, C, L\], got \[2, 3, 2, 2\]",
        ),
        ({"window_size": 3}, ValueError, "window_size should be a height and a width of at least 0, got 3"),
        ({"window_size": (1.5, 3)}, ValueError, r"window_size should be a height .*, got \(1.5, 3\)"),
        (
            {"window_size": (2**40, 2**40)},
            ValueError,
            "window_size should be so small that memory holds 2",
        ),
        ({"image_index": torch.tensor([0, 1])}, ValueError, "^image_index should be at least 0 and below 1, got 1$"),
        ({"pad_value": "edge"}, TypeError, "pad_value should be a number, got 'edge'"),
    ],
)
def test_splice_bad_input(change, error, message):
    at = torch.zeros(2, 2, dtype=torch.long)
    arguments = {
        "clean": torch.zeros(1, 3, 5, 5),
        "dirty": torch.zeros(2, 3, 2, 2),
        "dirty_origin": at,
        "window_origin": at,
        "window_size": (3, 3),
        **change,
    }
    with pytest.raises(error, match=message):
        ops.splice(**arguments)


def test_splice_has_no_derivative():
    at = torch.zeros(1, 2, dtype=torch.long)
    output = ops.splice(make((1, 1, 3, 3)).requires_grad_(), make((1, 1, 1, 1)), at, at, (2, 2))
    with pytest.raises(RuntimeError, match="splice has no derivative"):
        output.sum().backward()
