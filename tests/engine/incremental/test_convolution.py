"""Packed weights of the incremental engine's convolutions."""

import pytest
import torch
from torch import nn

from fastviz.engine.incremental import convolution
from fastviz.engine.incremental.network import network


def packed_weights(sides: range) -> tuple[int, int]:
    """How many sizes of input a convolution has seen, and how many orders of its weights it keeps for them."""
    torch.manual_seed(0)
    steps = network(nn.Sequential(nn.Conv2d(8, 16, 5, padding=2), nn.ReLU()).eval(), torch.zeros(1, 8, 32, 32)).steps
    (conv,) = (step for step in steps if isinstance(step, convolution.Conv))
    if conv._kernel is None:
        pytest.skip("oneDNN does not pack weights here")
    for side in sides:
        conv.full([torch.randn(4, 8, side, side)], clean=False)
    return len(conv._packed_by_size), len(conv._packed_by_order)


def test_few_orders_of_weights_serve_all_sizes_of_input() -> None:
    sizes, orders = packed_weights(range(8, 24))
    assert sizes == 16
    assert 1 <= orders <= 3


def test_a_descriptor_of_another_layout_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the same order may be kept more than once, but no two orders are taken for one."""
    packed = torch.ops.mkldnn._reorder_convolution_weight(
        torch.randn(16, 8, 3, 3), [1, 1], [1, 1], [1, 1], 1, [4, 8, 16, 16]
    )
    other = bytes(range(200))
    monkeypatch.setattr(
        torch.ops.mkldnn, "_get_mkldnn_serialized_md", lambda of: torch.tensor(list(other), dtype=torch.uint8)
    )
    assert convolution._order(packed) == other
