"""Memory: how many images go through a network at once, and errors that say it ran out."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["LARGEST_KEPT", "images_at_once", "is_out_of_memory", "keep_freed_memory", "keep_small_blocks", "what_fits"]

# Messages of the CPU's allocator (Linux and macOS, Windows), of C++, and of GPU libraries that allocate memory
# themselves. Only torch's own GPU allocator has an error class.
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
# All that oneDNN says where it gets no memory for the code or the scratch space of a convolution. What it does not
# support fails before, with longer messages ("could not create a primitive descriptor for ...").
_WORDS_OF_ONEDNN = ("could not create a primitive", "could not execute a primitive")

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BLOCK, _TOP = 1 << 30, (1 << 31) - 1

LARGEST_KEPT = 32 << 20
"""Blocks of more bytes come from the system each time (glibc's DEFAULT_MMAP_THRESHOLD_MAX)."""

_PIXELS_AT_ONCE = 200_000
"""Pixels of all images of one pass on a CPU. For 64 images of 128x128 through a SqueezeNet, batches of 8 or 16 take a
fifth less time than one batch of 64, whose maps do not fit into the caches, and than batches of 4."""


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
    if not isinstance(error, RuntimeError):
        return False
    message = str(error)
    return message in _WORDS_OF_ONEDNN or any(words in message for words in _WORDS)


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, from now on, instead of giving it back to the system.

    A pass frees all its maps. glibc gives them back, and the next pass gets them again page by page, filled with zeros:
    for large batches that is a good part of the time of a map. The process holds its largest memory to its
    end then, and some more between blocks. So it is for programs of our own, not for a library inside of another's.

    Nothing is done where another C library is used, or where the environment already has settings for glibc's malloc.

    Returns:
        Whether it is so now.
    """
    set_by_user = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if set_by_user or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    # The second setting alone would be a loss: after it, each block above 128 KiB comes from the system.
    return bool(library.mallopt(_M_MMAP_THRESHOLD, _BLOCK) and library.mallopt(_M_TRIM_THRESHOLD, _TOP))


def keep_small_blocks() -> None:
    """Let the C library keep what batches of up to :data:`LARGEST_KEPT` bytes a map free, for the next batch.

    glibc learns from blocks that are freed: up to the size of the largest one, memory is kept. Where only smaller ones
    were freed before, every batch of a sweep gives its maps back and gets them again page by page, which can take a
    tenth of its time. So one large block is freed, to which nothing was written: quick, and no setting is changed.
    A process that may not have so much goes without.
    """
    try:
        torch.empty(LARGEST_KEPT - 8192, dtype=torch.uint8)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise


def images_at_once(count: int, size: Sequence[int], device: torch.device) -> int:
    """The default for ``batch_size``: all ``count`` images on a GPU, on a CPU as many as its caches hold; at least 1.

    >>> images_at_once(64, (128, 128), torch.device("cpu"))
    12
    """
    if device.type != "cpu":
        return max(1, count)
    return max(1, round(_PIXELS_AT_ONCE / max(1, math.prod(size))))


def what_fits(attempt: Callable[[int], object], images: Tensor) -> str:
    """The message for ``images`` [n, C, H, W] that need too much memory at once: says how many of them would fit.

    ``attempt`` is called with half as many, a quarter as many and so on, until one call passes.
    """
    tried = len(images)
    size = f"{images.shape[-2]}x{images.shape[-1]}"
    what = f"{tried} image{'s' if tried > 1 else ''} of {size} pixels at once"
    while tried > 1:
        tried //= 2
        try:
            attempt(tried)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            continue
        return f"out of memory: {what} do not fit on {images.device}, {tried} would: batch_size={tried}"
    return f"out of memory: {what} do not fit on {images.device}; a smaller size may"
