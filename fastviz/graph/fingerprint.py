"""A model's structure, to tell whether results kept for it are still valid, and the cache of such results."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Hashable
from enum import Enum
from numbers import Number
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fastviz._util.by_model import ByModel

__all__ = ["StructureCache", "structure"]

Made = TypeVar("Made")


def structure(model: nn.Module) -> list[object]:
    """Everything about a model that can change which calls a forward pass makes, for comparison with an earlier state.

    Names, classes and plain attributes of all modules (numbers, words, lists, dicts and dataclasses of them, and
    functions by their identity), and the shapes and dtypes of parameters, buffers and other tensors; but no values of
    tensors and no training flags. It holds no reference to the model, which could otherwise never be freed.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3))
    >>> before = structure(model)
    >>> model[0].stride = (2, 2)
    >>> structure(model) == before
    False
    """
    found: list[object] = []
    for name, module in model.named_modules(remove_duplicate=False):
        found += [name, type(module), id(getattr(type(module), "forward", None))]
        found += [(key, _frozen(value)) for key, value in vars(module).items() if key not in _NOT_STRUCTURE]
        for tensors in (module._parameters, module._buffers):
            found += [(key, _frozen(value)) for key, value in tensors.items()]
    return found


_NOT_STRUCTURE = {"training", *vars(nn.Module())}


def _frozen(value: object) -> object:
    """A comparable copy of a plain ``value``; for anything else its class."""
    # frequent types first; the check for Number takes longest
    if isinstance(value, (int, float, str, type(None), bytes, Enum, torch.dtype, torch.device, Number)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(each) for each in value)
    if isinstance(value, dict):
        return tuple((str(key), _frozen(each)) for key, each in value.items())
    if isinstance(value, Tensor):
        return type(value), tuple(value.shape), value.dtype, value.device
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(_frozen(getattr(value, each.name)) for each in dataclasses.fields(value))
    return (type(value), id(value)) if callable(value) else type(value)


class _Entry(NamedTuple):
    key: Hashable
    state: object
    made: object


class StructureCache(Generic[Made]):
    """Results for models, each kept as long as its model lives and its state is the same.

    Args:
        count: results kept for each model, under different keys; the least recently used one is dropped.

    >>> kept, model = StructureCache[str](2), nn.ReLU()
    >>> [kept.get(model, "key", structure(model), lambda: words) for words in ("made", "new")]
    ['made', 'made']
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._entries: ByModel[list[_Entry]] = ByModel()
        self._making: ByModel[threading.RLock] = ByModel()
        self._lock = threading.Lock()

    def has(self, model: nn.Module, key: Hashable) -> bool:
        """Whether a result is kept under this ``key``, for any state: cheap to ask before computing the state."""
        with self._lock:
            return any(entry.key == key for entry in self._entries.get(model) or [])

    def peek(self, model: nn.Module, key: Hashable) -> Made | None:
        """The result kept under this ``key``, for any state."""
        with self._lock:
            return next((entry.made for entry in self._entries.get(model) or [] if entry.key == key), None)  # type: ignore[return-value]

    def find(self, model: nn.Module, key: Hashable, state: object) -> Made | None:
        """The result that :meth:`get` would return, or None if it would have to make it."""
        with self._lock:
            entries = self._entries.get(model) or []
            return next((entry.made for entry in entries if entry.key == key and entry.state == state), None)  # type: ignore[return-value]

    def drop(self, model: nn.Module, key: Hashable) -> None:
        """Drop the result kept under this ``key``."""
        with self._lock:
            self._entries[model] = [entry for entry in self._entries.get(model) or [] if entry.key != key]

    def get(self, model: nn.Module, key: Hashable, state: object, make: Callable[[], Made]) -> Made:
        """What ``make`` gave for this ``key``, now or in an earlier call in the same ``state``.

        For each model only one thread works at a time, so that threads share results; other models do not wait. Results
        for other states are dropped. Neither the state nor the result may refer to the model.
        """
        making = self._making.setdefault(model, threading.RLock)
        with making:
            with self._lock:
                valid = [entry for entry in self._entries.get(model) or [] if entry.state == state]
            entry = next((entry for entry in valid if entry.key == key), None)
            if entry is None:
                entry = _Entry(key, state, make())
            with self._lock:
                self._entries[model] = [entry, *(other for other in valid if other is not entry)][: self._count]
        return entry.made  # type: ignore[return-value]
