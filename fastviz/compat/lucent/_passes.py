"""Forward passes that end as soon as the layers that an objective reads are complete."""

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

__all__ = ["LayerLookup", "Passes"]


class Passes:
    """Forward passes of ``model`` that end at the requested layers.

    In lucent, a layer's output is what its tensor holds at the end of the whole pass: if a convolution is followed by
    an in-place rectifier, the rectified values. A pass therefore continues until the outputs no longer change.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {name.replace(".", "_"): name for name in hookable(model) if name}
        self._ends: dict[frozenset[str], Mapping[str, int]] = {}
        self._warned = False

    def full_name(self, layer: str) -> str:
        """The dotted name of the layer that lucent calls ``layer``.

        Raises:
            AssertionError: there is no such layer; the message lists the nearest.
        """
        if layer == "labels":
            return list(self.names.values())[-1]
        try:
            return self.names[checks.nearest(layer, "layer", self.names)]
        except ValueError as error:
            raise AssertionError(str(error)) from error

    def everything(self, images: Tensor) -> dict[str, Any]:
        """The outputs of all layers, by dotted name."""
        found: dict[str, Any] = {}

        def keep(name: str, module: nn.Module, inputs: Any, output: object) -> None:
            found[name] = output

        self._run(images, {name: partial(keep, name) for name in self.names.values()}, None)
        return found

    def until(self, images: Tensor, layers: frozenset[str]) -> dict[str, Any]:
        """The outputs of these ``layers``, by dotted name; the first such pass finds out where later ones can end."""
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
        # A copy, for models that change their input in place; convolutions are fastest with channels last.
        batch = images.clone(memory_format=torch.channels_last) if images.dim() == 4 else images.clone()
        with hooked_until(self.model, hooks, ends):
            try:
                self.model(batch)
            except RuntimeError as error:
                if not self._warned:
                    self._warned = True
                    warnings.warn(
                        "Some layers could not be computed, for example because the image is too small. This does not "
                        f"matter if the objective does not use them: {error}",
                        stacklevel=2,
                    )


def _versions(found: Mapping[str, Any]) -> list[int]:
    """How often each tensor was written to."""
    return [value._version if isinstance(value, Tensor) else 0 for _, value in sorted(found.items())]


class LayerLookup:
    """Gives one objective its images and its rows of the layers' outputs.

    Attributes:
        asked: the dotted names of the layers that the objective has requested.
    """

    def __init__(self, passes: Passes, pictures: Callable[[], Tensor]) -> None:
        self.asked: frozenset[str] = frozenset()
        self._passes = passes
        self._pictures = pictures
        self._given: dict[str, Any] = {}
        self._again: Callable[[], dict[str, Any]] = dict
        self._rows = slice(None)

    def show(self, given: dict[str, Any], again: Callable[[], dict[str, Any]], rows: slice) -> None:
        """Give the objective ``rows`` of the outputs ``given``. If a layer is missing, ``again`` makes a full pass, and
        its outputs are added to ``given``.
        """
        self._given, self._again, self._rows = given, again, rows

    def __call__(self, layer: str) -> Any:
        """The output of a layer; lucent's objectives call this with the layer's name."""
        if layer == "input":
            return self._pictures()
        name = self._passes.full_name(layer)
        self.asked |= {name}
        if name not in self._given:
            self._given.update(self._again())
        output = self._given.get(name)
        assert output is not None, f"layer {layer!r} should be called in the forward pass, but was not"
        return output[self._rows] if isinstance(output, Tensor) and self._rows != slice(None) else output
