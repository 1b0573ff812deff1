"""What is known on the host of tensors that stay on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

__all__ = ["HostCache"]

_Found = TypeVar("_Found")
_MOST = 64


class HostCache(Generic[_Found]):
    """Keeps what ``find`` finds of a tensor, for as long as that very tensor comes again.

    Reading a tensor waits for all the work before it on its device; the row numbers of an optimisation are the same
    tensor from step to step, until an image stops. For tensors that nobody writes to.

    >>> import torch
    >>> known = HostCache(lambda rows: rows.tolist())
    >>> known(torch.arange(3))
    [0, 1, 2]
    """

    def __init__(self, find: Callable[[Tensor], _Found]) -> None:
        self._find = find
        self._found: dict[int, tuple[Tensor, _Found]] = {}  # id → the tensor, which keeps the id its own

    def __call__(self, tensor: Tensor) -> _Found:
        """What was found of ``tensor``."""
        kept = self._found.get(id(tensor))
        if kept is None:
            if len(self._found) == _MOST:
                self._found.clear()
            kept = self._found[id(tensor)] = (tensor, self._find(tensor))
        return kept[1]
