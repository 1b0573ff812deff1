"""What this machine's processor can do, found out by trying."""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["packed_convolutions"]


@cache
def packed_convolutions(dtype: torch.dtype) -> bool:
    """Whether oneDNN can convolve values of this type with weights that were packed beforehand.

    It needs AVX-512 for bfloat16 and still more for float16, and ``ONEDNN_MAX_CPU_ISA`` can disable that without
    torch's own queries noticing. So a small convolution is tried, once in a process.

    >>> packed_convolutions(torch.int32)
    False
    """
    if not torch.backends.mkldnn.is_available():
        return False
    x = torch.zeros(2, 32, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(32, 32, 3, 3, dtype=dtype)
    numbers = ([0, 0], [1, 1], [1, 1], 1)
    try:
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *numbers, list(x.shape))
        torch.ops.mkldnn._convolution_pointwise(x, packed, None, *numbers, "none", [], "")
    except RuntimeError:
        return False
    return True
