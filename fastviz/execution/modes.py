"""The function modes of torch that a piece of code is inside of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import overrides

__all__ = ["no_function_modes"]


@contextmanager
def no_function_modes() -> Iterator[None]:
    """Leave out the modes that the caller is in, such as faster convolutions: they would be recorded, not the model.

    torch has no public way to do that; these are the functions that its own modes are entered and left by.
    """
    held = [overrides._pop_mode() for _ in range(torch._C._len_torch_function_stack())]
    try:
        yield
    finally:
        for each in reversed(held):
            overrides._push_mode(each)
