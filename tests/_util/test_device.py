"""The device that a word names."""

from __future__ import annotations

import torch

from fastviz._util.device import choose_device


def test_choose_device():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
