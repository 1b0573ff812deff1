"""Modules that ``torch.export`` made, some of them for a fixed number of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["fixed_batch", "is_exported", "of_any_batch"]


def is_exported(model: nn.Module) -> bool:
    """Whether ``torch.export`` made ``model``: a graph of calls, with parameters but without layers."""
    return isinstance(model, fx.GraphModule) and hasattr(model, "_guards_fn")


def fixed_batch(model: nn.Module) -> int | None:
    """The fixed number of images that a module of ``torch.export`` takes; None if it takes any number."""
    if not is_exported(model):
        return None
    assert isinstance(model, fx.GraphModule)
    for node in model.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        if isinstance(value, Tensor) and value.dim() in (3, 4, 5):  # signals, images, volumes
            return value.shape[0] if isinstance(value.shape[0], int) else None
    return None


def of_any_batch(model: nn.Module) -> nn.Module:
    """``model`` itself; or, for a fixed batch, a wrapper that takes any number and pads with the last image."""
    size = fixed_batch(model)
    return model if size is None else _AnyBatch(model, size)


class _AnyBatch(nn.Module):
    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model = model
        self.size = size

    def forward(self, x: Tensor) -> Any:
        """The outputs for images [N, C, H, W], N of at least 1."""
        outputs = []
        for part in x.split(self.size):
            missing = self.size - len(part)
            output = self.model(torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part)
            if not isinstance(output, Tensor):
                raise TypeError(f"model should give one tensor where its batch is fixed, got {type(output).__name__}")
            outputs.append(output[: len(part)])
        return torch.cat(outputs)
