"""A cache on the host for values read from tensors on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

__all__ = ["HostCache"]

_Result = TypeVar("_Result")
_MAX_ENTRIES = 64


class HostCache(Generic[_Result]):
    """Caches the result of ``find`` for each tensor object.

    Reading a tensor waits for all earlier work on its device. The row indices of an optimisation stay the same tensor
    from step to step until an image stops, so they are read once. Only for tensors that are never written to.

    >>> import torch
    >>> known = HostCache(lambda rows: rows.tolist())
    >>> known(torch.arange(3))
    [0, 1, 2]
    """

    def __init__(self, find: Callable[[Tensor], _Result]) -> None:
        self._find = find
        # by id; the tensor is held so that its id is not reused
        self._found: dict[int, tuple[Tensor, _Result]] = {}

    def __call__(self, tensor: Tensor) -> _Result:
        """The result of ``find`` for ``tensor``."""
        entry = self._found.get(id(tensor))
        if entry is None:
            if len(self._found) == _MAX_ENTRIES:
                self._found.clear()
            entry = self._found[id(tensor)] = (tensor, self._find(tensor))
        return entry[1]
