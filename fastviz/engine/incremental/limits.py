"""Limits of memory per call, and of windows per batch."""

from __future__ import annotations

import torch

__all__ = ["free_memory", "windows_at_once"]

_MEMORY = 1 << 30
"""The default for the bytes that a call may hold on the CPU."""

_CACHE = 48 << 20
"""The default for the bytes that a batch may hold on the CPU: maps that fit into the last cache are read faster, but
each batch reads all weights again."""

_ON_GPU = 512
"""The default number of windows in a batch on a GPU."""


def free_memory(device: torch.device) -> int:
    """Bytes for a call: on a GPU half of the free memory, including memory that torch holds but does not use."""
    if device.type != "cuda":
        return _MEMORY
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + unused) // 2


def windows_at_once(peak: float, memory: int, wanted: int | None, device: torch.device) -> int:
    """The number of windows in a batch, if each holds at most ``peak`` bytes.

    Args:
        peak: see :class:`fastviz.engine.incremental.plan.Schedule`.
        memory: bytes in total, including clean maps.
        wanted: the maximum number; None is as many as fit the caches of a CPU, and 512 on a GPU.
        device: where they run.
    """
    peak = max(1.0, peak)
    # half is for the clean maps, and a third of the rest for the workspace of single operations
    fits = int(memory / 3 / peak)
    if wanted is None:
        in_cache = max(4, torch.get_num_threads(), min(32, int(_CACHE / peak)))
        wanted = _ON_GPU if device.type == "cuda" else in_cache
    return max(1, min(wanted, fits))
