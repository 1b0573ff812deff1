"""A hash that identifies a network's weights."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from fastviz.execution.evaluation_mode import frozen_model

__all__ = ["weights_hash"]


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights with their names, dtypes and shapes, as ``sha256:…``."""
    found = hashlib.sha256()
    with frozen_model(model):
        for name, value in model.state_dict().items():
            if isinstance(value, Tensor):
                found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
                plain = value.detach().cpu().contiguous().reshape(-1)
                found.update(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return f"sha256:{found.hexdigest()}"
