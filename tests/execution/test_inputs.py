"""What a model cannot be run on is said in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastviz.execution.inputs import input_batch


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
            TypeError,
            r"x should be a floating-point tensor, got torch.uint8",
        ),
        (torch.zeros(1, 3, 4, 4, dtype=torch.bool), TypeError, r"x should be a floating-point tensor, got torch.bool"),
        ([[1.0]], TypeError, "x should be a tensor, got list"),
        (torch.zeros(3, 4, 4), ValueError, r"x should have shape \[N, C, H, W\], got \[3, 4, 4\]"),
        (torch.zeros(1, 3, 0, 4), ValueError, r"x should have at least one channel and one pixel, got \[1, 3, 0, 4\]"),
        (torch.zeros(1, 3, 4, 4, device="meta"), ValueError, "x should be on the device of the model, cpu, got meta"),
    ],
)
def test_input_batch_says_what_is_wrong(x: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        input_batch(nn.Conv2d(3, 1, 1), x)
