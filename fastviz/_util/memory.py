"""Memory that runs out, told from other errors."""

from __future__ import annotations

import torch

__all__ = ["is_out_of_memory"]

# What the CPU's allocator says on Linux and macOS and on Windows, what C++ says, and what libraries on a GPU say that
# allocate by themselves. Only torch's own allocator for GPUs has an error class.
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused: torch's on a CPU or a GPU, a library's, or Python's.

    >>> try:
    ...     torch.empty(1 << 60)
    ... except RuntimeError as error:
    ...     is_out_of_memory(error)
    True
    >>> is_out_of_memory(RuntimeError("something else"))
    False
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
