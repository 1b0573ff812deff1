"""Passes of a network that end as soon as the layers that an objective asks for are there."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz.execution.forward import hooked_until
from fastviz.execution.hooks import hookable

__all__ = ["Found", "Passes"]


class Passes:
    """The passes of ``model``, by the names of the layers that are needed.

    What a layer gives is what stands in its tensor when lucent's pass is over: if the rectifier behind a convolution
    works in place, its values. A pass therefore goes on until nothing changes what was found any more.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {name.replace(".", "_"): name for name in hookable(model) if name}
        self._ends: dict[frozenset[str], Mapping[str, int]] = {}
        self._warned = False

    def full_name(self, layer: str) -> str:
        """The dotted name of what lucent calls ``layer``.

        Raises:
            AssertionError: there is none; the message lists the nearest.
        """
        if layer == "labels":
            return list(self.names.values())[-1]
        try:
            return self.names[checks.nearest(layer, "layer", self.names)]
        except ValueError as error:
            raise AssertionError(str(error)) from error

    def everything(self, images: Tensor) -> dict[str, Any]:
        """What all layers give, by dotted names."""
        found: dict[str, Any] = {}

        def keep(name: str, module: nn.Module, inputs: Any, output: object) -> None:
            found[name] = output

        self._run(images, {name: partial(keep, name) for name in self.names.values()}, None)
        return found

    def until(self, images: Tensor, layers: frozenset[str]) -> dict[str, Any]:
        """What these ``layers`` give, by dotted names; the first such pass learns where it can end."""
        found: dict[str, Any] = {}
        if not layers:
            return found
        ends = self._ends.get(layers)

        def keep(name: str, module: nn.Module, inputs: Any, output: object) -> None:
            if name in layers:
                found[name] = output

        if ends is not None:
            self._run(images, {name: partial(keep, name) for name in ends}, ends)
            return found
        states: list[tuple[Counter[str], list[int]]] = []
        calls: Counter[str] = Counter()

        def note(name: str, module: nn.Module, inputs: Any, output: object) -> None:
            keep(name, module, inputs, output)
            calls[name] += 1
            if len(found) == len(layers):
                relevant = {*layers, name}
                counts = Counter({each: calls[each] for each in relevant})
                states.append((counts, _versions(found)))

        self._run(images, {name: partial(note, name) for name in self.names.values()}, None)
        last = Counter({name: calls[name] for name in layers})
        final = _versions(found)
        for counts, versions in states:
            if versions == final and all(counts[name] == last[name] for name in layers):
                self._ends[layers] = counts
                break
        return found

    def _run(self, images: Tensor, hooks: Mapping[str, Any], ends: Mapping[str, int] | None) -> None:
        # a copy, for models that work in place on their input; convolutions are fastest with channels last
        batch = images.clone(memory_format=torch.channels_last) if images.dim() == 4 else images.clone()
        with hooked_until(self.model, hooks, ends):
            try:
                self.model(batch)
            except RuntimeError as error:
                if not self._warned:
                    self._warned = True
                    warnings.warn(
                        "Some layers could not be computed, as where the image is too small for them. It is fine, as "
                        f"long as the objective does not use them: {error}",
                        stacklevel=2,
                    )


def _versions(found: Mapping[str, Any]) -> list[int]:
    """How often each tensor was written to."""
    return [value._version if isinstance(value, Tensor) else 0 for _, value in sorted(found.items())]


class Found:
    """What one objective asks for: its images, and its rows of what the layers give.

    Attributes:
        asked: the dotted names of the layers that it has asked for.
    """

    def __init__(self, passes: Passes, pictures: Callable[[], Tensor]) -> None:
        self.asked: frozenset[str] = frozenset()
        self._passes = passes
        self._pictures = pictures
        self._given: dict[str, Any] = {}
        self._again: Callable[[], dict[str, Any]] = dict
        self._rows = slice(None)

    def show(self, given: dict[str, Any], again: Callable[[], dict[str, Any]], rows: slice) -> None:
        """Let the objective see ``rows`` of what a pass has given; ``again`` makes a whole pass if that lacks a layer.

        ``given`` is added to then.
        """
        self._given, self._again, self._rows = given, again, rows

    def __call__(self, layer: str) -> Any:
        """What lucent's objectives call with the name of a layer."""
        if layer == "input":
            return self._pictures()
        name = self._passes.full_name(layer)
        self.asked |= {name}
        if name not in self._given:
            self._given.update(self._again())
        output = self._given.get(name)
        assert output is not None, f"layer {layer!r} should be called in the forward pass, but was not"
        return output[self._rows] if isinstance(output, Tensor) and self._rows != slice(None) else output
