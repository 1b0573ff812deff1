"""Weights for the built-in network that cost nothing to read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastviz.models.demo_network import DemoNetwork


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Random weights of the built-in network: what it sees does not matter here."""
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    generator = torch.Generator().manual_seed(0)
    state = DemoNetwork().state_dict()
    save_file({name: torch.randn(value.shape, generator=generator) / 20 for name, value in state.items()}, path)
    return path
