"""The targets of a call, checked: one per sample or several."""

from __future__ import annotations

import numbers
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias
from warnings import warn

import torch
from torch import Tensor, nn

from fastviz.execution.hooks import layer_module
from fastviz.execution.precision import as_map, map_dtype
from fastviz.targets.indices import Activations, checked_index, required_index
from fastviz.targets.objectives import Objective, all_parts, all_scores_read, class_objective

__all__ = ["Selection", "Target", "resolve"]

Target: TypeAlias = int | Tensor | Objective | Sequence[int | Tensor | Objective | None] | None
"""None (the class with the highest score), a class index, a tensor of them, [N] (one per sample) or [N, T] (T per
sample), an objective, or a list of T of those (T targets per sample, from one forward pass)."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Targets that have been checked: what :func:`resolve` makes.

    ``several`` says whether there are T targets per sample (values [N, T]) or one (values [N]); ``columns`` is T, or
    None.
    """

    objectives: tuple[Objective, ...]
    several: bool
    columns: int | None

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers whose activations must be captured, each once."""
        return tuple(dict.fromkeys(chain.from_iterable(objective.layers for objective in self.objectives)))

    @property
    def predicts(self) -> bool:
        """Whether some target is the class with the highest score."""
        return any(objective.predicts for objective in self.objectives)

    @property
    def scores_read(self) -> frozenset[int] | None:
        """The classes whose scores are all that is read of the output; None if others may be."""
        return all_scores_read(self.objectives)

    @property
    def reads_output(self) -> bool:
        """Whether some target reads the output of the model, and not only :attr:`layers`."""
        return any(objective.reads_output for objective in self.objectives)

    @property
    def parts(self) -> Mapping[Hashable, Objective] | None:
        """The parts of the model's output that are read; see :attr:`Objective.parts`."""
        return all_parts(self.objectives)

    def missing(self, output: object, *, stacklevel: int = 2) -> Tensor | None:
        """Samples whose target does not exist in the model's ``output``: bool [N] or [N, T]; None if all exist. Their
        values are 0.

        Warns:
            UserWarning: there are some, and why.
        """
        found = [objective.missing(output) for objective in self.objectives]
        known = [each for each in found if each is not None and bool(each[0].any())]
        if not known:
            return None
        samples = len(known[0][0])
        for gone, words in known:
            count = int(gone.sum())
            warn(f"{words} in {count} of {samples} samples: their maps are zero", UserWarning, stacklevel=stacklevel)
        here = torch.zeros(samples, dtype=torch.bool)
        columns = [here if each is None else each[0].cpu() for each in found]
        return torch.stack(columns, dim=1) if self.several else columns[0]

    def split_targets(self) -> list[Selection]:
        """The targets of each sample one by one: T selections with one target per sample."""
        return [Selection((each,), False, None) for objective in self.objectives for each in objective.split_targets()]

    def values(self, output: object, activations: Activations) -> Tensor:
        """Values [N], or [N, T] if there are several targets per sample, in the graph of the forward pass; float32 of
        outputs of 16 bits.

        Raises:
            TypeError: a class is asked for and the ``output`` of the model is not a tensor.
            ValueError: it is not [N, K]; a class, channel or position does not exist; a tensor of targets has another
                length than N; a layer was not called.
        """
        return self._columns([objective.values(output, activations) for objective in self.objectives])

    def of_parts(self, parts: Mapping[Hashable, Tensor]) -> Tensor:
        """The same values from the :attr:`parts` of the output."""
        return self._columns([objective.of_parts(parts) for objective in self.objectives])

    def _columns(self, values: list[Tensor]) -> Tensor:
        if not self.several:
            return as_map(values[0])
        return torch.cat([as_map(each).reshape(len(each), -1) for each in values], dim=1)

    def no_values(self, like: Tensor, shape: Sequence[int] = ()) -> Tensor:
        """What there is for no samples: zeros [0, *shape], or [0, T, *shape], of the dtype of maps of ``like``, on its
        device."""
        columns = () if self.columns is None else (self.columns,)
        return like.new_zeros((0, *columns, *shape), dtype=map_dtype(like.dtype))

    def with_predicted(self, predicted: Tensor) -> Selection:
        """The selection with the ``predicted`` classes, int64 [N], in place of "the class with the highest score"."""
        objectives = tuple(objective.with_predicted(predicted) for objective in self.objectives)
        return Selection(objectives, self.several, self.columns)

    def for_samples(self, samples: Tensor, of: int) -> Selection:
        """The selection for a batch of the ``samples`` with these numbers, int64 [P], of a batch of ``of``.

        Raises:
            ValueError: a tensor of targets has another length than ``of``.
        """
        objectives = tuple(objective.for_samples(samples, of) for objective in self.objectives)
        return Selection(objectives, self.several, self.columns)


def resolve(target: Target, model: nn.Module) -> Selection:
    """``target``, checked against ``model`` as far as that is possible without running it.

    Args:
        target: see :data:`Target`.
        model: where the layers of the target are looked up.

    Returns:
        The targets of the call, with one value per sample or T.

    >>> from fastviz.targets import class_probability
    >>> resolve([3, class_probability(3)], nn.Linear(4, 5)).columns
    2

    Raises:
        TypeError: not a target, or not of whole numbers.
        ValueError: a negative class, a tensor that is neither [N] nor [N, T], an empty list, or a layer that the model
            does not have; the message lists the nearest.
    """
    if isinstance(target, Tensor) and target.dim() == 2:
        if not target.shape[1]:
            raise ValueError(f"target should have at least one class per sample, got shape {list(target.shape)}")
        flat = required_index(target.reshape(-1), "target")
        assert isinstance(flat, Tensor)
        selection = Selection((class_objective(flat.reshape(target.shape)),), True, target.shape[1])
    elif isinstance(target, Sequence) and not isinstance(target, str):
        if not target:
            raise ValueError("target should have at least one entry, got an empty list")
        selection = Selection(tuple(_objective(entry) for entry in target), True, len(target))
    else:
        selection = Selection((_objective(target),), False, None)
    for name in selection.layers:
        layer_module(model, name)
    return selection


def _objective(target: object) -> Objective:
    if isinstance(target, Objective):
        return target
    if target is None or isinstance(target, (numbers.Integral, Tensor)):
        return class_objective(checked_index(target, "target"))
    raise TypeError(
        "target should be None, a class index, a tensor of them, an objective such as class_score(3), "
        f"or a list of those, got {type(target).__name__}"
    )
