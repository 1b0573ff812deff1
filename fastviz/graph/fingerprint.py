"""What a model is made of, to tell whether what was worked out for it still holds, and where that is kept."""

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

__all__ = ["Kept", "structure"]

Made = TypeVar("Made")


def structure(model: nn.Module) -> list[object]:
    """What the course of a forward pass can depend on, to be compared with an earlier one.

    Names, classes and plain attributes of all modules (numbers, words, lists, dicts and dataclasses of them, and
    functions by their identity), and the shapes and dtypes of parameters, buffers and other tensors; no values of
    tensors, and not whether a module is in training mode. Nothing in it refers to the model, which would
    otherwise never be freed.

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
    """A copy of plain ``value`` that compares with others; of anything else its class."""
    # what is frequent first: the question whether something is a Number takes longest
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


class Kept(Generic[Made]):
    """What was made of models, for as long as each lives and stays in the same state.

    Args:
        count: how many a model, under different keys; the one that was asked for longest ago gives way.

    >>> kept, model = Kept[str](2), nn.ReLU()
    >>> [kept.get(model, "key", structure(model), lambda: words) for words in ("made", "new")]
    ['made', 'made']
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._entries: ByModel[list[_Entry]] = ByModel()
        self._making: ByModel[threading.RLock] = ByModel()
        self._lock = threading.Lock()

    def has(self, model: nn.Module, key: Hashable) -> bool:
        """Whether something is kept under this ``key``, in whatever state: to be asked before a state is worked out."""
        with self._lock:
            return any(entry.key == key for entry in self._entries.get(model) or [])

    def peek(self, model: nn.Module, key: Hashable) -> Made | None:
        """What is kept under this ``key``, in whatever state."""
        with self._lock:
            return next((entry.made for entry in self._entries.get(model) or [] if entry.key == key), None)  # type: ignore[return-value]

    def find(self, model: nn.Module, key: Hashable, state: object) -> Made | None:
        """What :meth:`get` would give without making it; None if it would have to."""
        with self._lock:
            entries = self._entries.get(model) or []
            return next((entry.made for entry in entries if entry.key == key and entry.state == state), None)  # type: ignore[return-value]

    def drop(self, model: nn.Module, key: Hashable) -> None:
        """Forget what is kept under this ``key``."""
        with self._lock:
            self._entries[model] = [entry for entry in self._entries.get(model) or [] if entry.key != key]

    def get(self, model: nn.Module, key: Hashable, state: object, make: Callable[[], Made]) -> Made:
        """What ``make`` gave for this ``key``, now or in an earlier call in the same ``state``.

        One thread at a time for each model, so that threads that ask for the same share it; other models do not wait.
        What was made in another state is dropped. Neither may refer to the model.
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
