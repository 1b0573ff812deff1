"""The torch function modes that are currently active."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import overrides

__all__ = ["no_function_modes"]


@contextmanager
def no_function_modes() -> Iterator[None]:
    """Suspend the active modes, such as faster convolutions, which would otherwise be recorded instead of the model.
    torch has no public way to do that; these are the functions by which its own modes are entered and left.
    """
    held = [overrides._pop_mode() for _ in range(torch._C._len_torch_function_stack())]
    try:
        yield
    finally:
        for each in reversed(held):
            overrides._push_mode(each)
