"""What fastviz keeps by model: the one place for it, and the one way to free it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakSet, ref

from torch import nn

from fastviz._util import checks

__all__ = ["ByModel", "forget"]

Value = TypeVar("Value")

_lock = threading.RLock()
"""Held only where two steps belong together; single operations on a dictionary need no lock. Code that runs when a
model is freed must not wait for a lock, because a model can be freed anywhere, in any thread."""


class ByModel(Generic[Value]):
    """Maps models to values, each for as long as the model lives or until :func:`forget`. Safe for several threads.

    Models are told apart by identity, whatever their ``__eq__`` says. A value must not refer to its model, which would
    otherwise never be freed.

    Args:
        in_use: whether values belong to a ``with`` block that is still open; :func:`forget` leaves those alone.

    >>> kept, model = ByModel[str](), nn.ReLU()
    >>> kept[model] = "words"
    >>> kept.get(model), len(kept)
    ('words', 1)
    >>> del model
    >>> len(kept)
    0
    """

    def __init__(self, *, in_use: bool = False) -> None:
        # By id. The callback of the reference removes the entry before another object can get the id.
        self._entries: dict[int, tuple[ref[nn.Module], Value]] = {}
        if not in_use:
            with _lock:
                _forgettable.add(self)

    def get(self, model: nn.Module) -> Value | None:
        """The value of ``model``, or None."""
        entry = self._entries.get(id(model))
        return None if entry is None else entry[1]

    def setdefault(self, model: nn.Module, make: Callable[[], Value]) -> Value:
        """The value of ``model``, which ``make`` makes if there is none; ``make`` must be quick."""
        with _lock:
            entry = self._entries.get(id(model))
            if entry is not None:
                return entry[1]
            value = self[model] = make()
            return value

    def pop(self, model: nn.Module) -> Value | None:
        """Remove the value of ``model`` and return it; None if there is none."""
        entry = self._entries.pop(id(model), None)
        return None if entry is None else entry[1]

    def values(self) -> list[Value]:
        """The values of all models."""
        return [value for _, value in list(self._entries.values())]

    def __setitem__(self, model: nn.Module, value: Value) -> None:
        key, entries = id(model), ref(self)

        def remove(gone: ref[nn.Module]) -> None:
            held = entries()
            if held is not None:
                held._entries.pop(key, None)

        self._entries[key] = ref(model, remove), value

    def __contains__(self, model: nn.Module) -> bool:
        return id(model) in self._entries

    def __len__(self) -> int:
        return len(self._entries)


_forgettable: WeakSet[ByModel[Any]] = WeakSet()


def forget(model: nn.Module) -> None:
    """Free all that fastviz keeps for ``model``: traces, packed weights, proofs, recorded passes, and its description.

    Without this call, all of it is freed when the model itself is freed. The next call of a method works everything out
    again and gives the same results, with one exception: what :func:`fastviz.load_model` and :func:`fastviz.describe`
    noted (preprocessing, class names, name and weights) is gone, so describe the model again if it is used with
    pictures or class names. Inside of :func:`fastviz.cuda_graphs` the passes recorded for the model are freed too.

    A model that another thread is running is not disturbed. Copies of a model, and models that hold it as a part, have
    entries of their own, which stay.

    Args:
        model: any module, whether anything is kept for it or not; for what ``torch.compile`` returned, the module
            inside is forgotten too.

    Raises:
        TypeError: ``model`` is not a torch module.

    >>> import fastviz as fv
    >>> model = nn.Linear(3, 2)
    >>> fv.describe(model, class_names=["cat", "dog"])
    >>> fv.forget(model)
    >>> fv.class_names(model)
    Traceback (most recent call last):
    ...
    ValueError: the class names of this Linear are not known: give them once with fastviz.models.describe(model, \
class_names=[...])
    """
    module: object = checks.module(model)
    while isinstance(module, nn.Module):
        with _lock:
            everything = list(_forgettable)
        for kept in everything:
            kept.pop(module)
        module = getattr(module, "_orig_mod", None)
