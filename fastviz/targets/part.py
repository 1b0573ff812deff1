"""A model reduced to the part of its output that targets read, as one tensor: sweeps need that."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from fastviz._util.by_model import ByModel
from fastviz.execution.compiled import is_compiled
from fastviz.targets.objectives import Objective
from fastviz.targets.selection import Selection

__all__ = ["PartOfOutput", "part_of_output"]

_KEPT = 4
"""Number of kinds of targets for which reduced models, and traces with them, are kept."""


class PartOfOutput(nn.Module):
    """``model``, followed by the extraction of the parts that targets read.

    It holds a twin of the model around the very same modules and parameters, and the caller's functions only by weak
    references. It is kept with the model, and must not keep the model alive.
    """

    def __init__(self, model: nn.Module, parts: Mapping[Hashable, Objective]) -> None:
        super().__init__()
        twin: nn.Module = object.__new__(type(model))
        vars(twin).update(vars(model))
        self.model = twin
        self._takers = {key: _held(each) for key, each in parts.items()}

    def takes(self, parts: Mapping[Hashable, Objective]) -> bool:
        """Whether these are its targets: the same ones, for functions."""
        same = self._takers.keys() == parts.keys()
        return same and all(not isinstance(held, ref) or held() is parts[key] for key, held in self._takers.items())

    def refresh(self, model: nn.Module) -> None:
        """Copy attributes that have been set on ``model`` since."""
        vars(self.model).update(vars(model))

    def forward(self, x: Tensor) -> Tensor:
        """The only part [N, ...], or all of them as rows [N, M]."""
        given = self.model(x)
        found = {}
        for key, held in self._takers.items():
            taker = held() if isinstance(held, ref) else held
            assert taker is not None, "the caller holds its targets"
            found[key] = taker.part(given)
        if len(found) == 1:
            return next(iter(found.values()))
        return torch.cat([part.flatten(1) if part.dim() > 1 else part[:, None] for part in found.values()], dim=1)


def part_of_output(model: nn.Module, selection: Selection, output: object) -> tuple[PartOfOutput, Any] | None:
    """The model with the parts that ``selection`` reads for its output, and a function that splits that output into the
    parts.

    Args:
        model: any module.
        selection: targets that read nothing but the output.
        output: what the model gave for some images.

    Returns:
        The module, from an earlier call where the targets read the same, and a function of its output that gives the
        parts. None where the output is a tensor of scores already, where a target reads all of it, and for models that
        cannot be part of another one (scripts, and what ``torch.compile`` returned).
    """
    parts = selection.parts
    plain = isinstance(output, Tensor) and output.dim() == 2
    if not parts or plain or isinstance(model, torch.jit.ScriptModule) or is_compiled(model):
        return None
    with _lock:
        known = _made.get(model) or []
        found = next((each for each in known if each.takes(parts)), None)
        if found is None:
            found = PartOfOutput(model, parts)
        else:
            found.refresh(model)
        _made[model] = [found, *(each for each in known if each is not found)][:_KEPT]
    shapes = {key: tuple(taker.part(output).shape[1:]) for key, taker in parts.items()}
    return found, lambda given: _apart(given, shapes)


_made: ByModel[list[PartOfOutput]] = ByModel()
_lock = threading.Lock()


def _apart(given: Tensor, shapes: Mapping[Hashable, Sequence[int]]) -> dict[Hashable, Tensor]:
    if len(shapes) == 1:
        return dict.fromkeys(shapes, given)
    columns = given.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {key: part.reshape(len(part), *shape) for (key, shape), part in zip(shapes.items(), columns, strict=True)}


def _held(objective: Objective) -> Objective | ref[Objective]:
    """The objective, or a weak reference to one that holds a function."""
    return ref(objective) if objective.holds_function else objective
