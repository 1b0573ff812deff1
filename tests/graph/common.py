"""Networks of torchvision for the tests of this folder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

torchvision = pytest.importorskip("torchvision")


def network(name: str) -> nn.Module:
    """With weights as torchvision draws them."""
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **quick)
    return model.eval()


def outline(name: str) -> nn.Module:
    """With whatever weights the memory holds: geometry does not depend on them, and drawing them takes seconds."""
    with torch.device("meta"):
        model = network(name)
    model.to_empty(device="cpu")
    for buffer in model.buffers():  # indices among them
        buffer.zero_()
    return model
