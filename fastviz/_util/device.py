"""The device that a word names."""

from __future__ import annotations

import torch

__all__ = ["choose_device"]


def choose_device(name: str = "auto") -> torch.device:
    """The device called ``name``; ``"auto"`` is the first GPU that torch can use, else the CPU.

    Raises:
        ValueError: not a device name, or one that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device should be auto, cpu, cuda or cuda:INDEX, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"device {name!r} is not there: torch can use {count} GPUs (`fastviz info` says why)")
    return device
