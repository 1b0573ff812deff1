"""Checks of arguments that several operators share."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.ops._library import libraries

__all__ = ["MOST_VALUES", "called", "check_like", "check_supported", "image_index_of", "integers"]

MOST_VALUES = 2**60
"""The most values of a tensor: beyond, 64 bits cannot count the bytes."""
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_supported(tensor: Tensor, argument: str) -> None:
    """The operators exist for the CPU and, where the library is loaded, for CUDA (and for fake and meta tensors)."""
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{argument} should be float32, float64, float16 or bfloat16, got {tensor.dtype}")
    if tensor.device.type in ("cpu", "meta"):
        return
    if tensor.device.type != "cuda":
        raise ValueError(f"{argument} should be on the CPU or a CUDA device, got {tensor.device}")
    if libraries()["cuda"].startswith("not loaded"):
        raise ValueError(f"{argument} is on {tensor.device}, but the CUDA library is {libraries()['cuda']}")


def check_like(tensor: Tensor, argument: str, other: Tensor, other_argument: str) -> None:
    if tensor.dtype != other.dtype:
        raise TypeError(f"{argument} should have the dtype of {other_argument}, {other.dtype}, got {tensor.dtype}")
    if tensor.device != other.device:
        raise ValueError(f"{argument} should be on the device of {other_argument}, {other.device}, got {tensor.device}")


def integers(value: Tensor, argument: str, other: Tensor, other_argument: str, layout: str, *, dims: int) -> Tensor:
    """``value`` as int64, if it is a tensor of whole numbers on the device of ``other``."""
    checks.tensor(value, argument, dims=(dims,), layout=layout, floating=False)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{argument} should be a tensor of integers, got {value.dtype}")
    if value.dtype == torch.uint64:
        raise TypeError(f"{argument} should be a tensor of int64 or narrower, got {value.dtype}")
    if value.device != other.device:
        raise ValueError(f"{argument} should be on the device of {other_argument}, {other.device}, got {value.device}")
    return value.long()


def image_index_of(value: Tensor | None, images: Tensor, images_argument: str, windows: int) -> Tensor | None:
    if value is None:
        if images.shape[0] != 1 and windows != 0:
            raise ValueError(f"image_index is needed where {images_argument} has {images.shape[0]} pictures, got None")
        return None
    value = integers(value, "image_index", images, images_argument, "[P]", dims=1)
    if value.shape[0] != windows:
        raise ValueError(f"image_index should have shape [{windows}], got {list(value.shape)}")
    return value


def called(operator: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Call an operator; its complaints about values become a ValueError of one line. Checking values here as well would
    take as long again, and could not be compiled.
    """
    if torch.compiler.is_compiling():
        return operator(*arguments)
    try:
        return operator(*arguments)
    except RuntimeError as error:
        said = re.search(r"(?:image_index|weights) should be .*", str(error))
        if said is None:
            raise
        raise ValueError(said.group()) from None
