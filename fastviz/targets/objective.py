"""The base class of all targets: one number per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from fastviz.execution.precision import as_map
from fastviz.targets.indices import Activations, Index
from fastviz.targets.words import shown

__all__ = ["Objective", "all_parts", "all_scores_read"]


class Objective(ABC):
    """One number per sample, computed from a forward pass; objectives add, subtract and multiply by numbers.

    Functions make them: :func:`class_score`, :func:`class_probability`, :func:`neuron`, :func:`channel`, :func:`layer`,
    :func:`output`, :func:`region_score`, :func:`pixel`, :func:`box_score`, :func:`similarity`.

    >>> from fastviz.targets.objectives import channel, class_score, neuron
    >>> combined = 2 * class_score(3) - neuron("features.0", channel=1) + channel("features.3", 5) * 0.5
    >>> combined.layers
    ('features.0', 'features.3')
    """

    layers: tuple[str, ...] = ()
    """Layers whose activations it reads."""
    predicts: bool = False
    """Whether it is about the class with the highest score."""
    is_unit: bool = False
    """Whether it is the activation of one unit of a layer, whose place :meth:`places` tells."""
    holds_function: bool = False
    """Whether it holds a function of the caller's, which may hold anything."""
    # A slot keeps the copies out of vars(), which checkpoints compare.
    __slots__ = ("_copies",)
    _copies: dict[tuple[int, torch.device], tuple[Tensor, Tensor]]

    @property
    def scores_read(self) -> frozenset[int] | None:
        """The classes whose scores are all that it reads of the output; None if it may read others."""
        return None

    @property
    def reads_output(self) -> bool:
        """Whether it reads the output of the model, or only :attr:`layers`."""
        return True

    @property
    def samples(self) -> int | None:
        """The number of samples that its tensors of indices are for; None if it holds none and fits any batch."""
        return None

    @property
    def class_index(self) -> Index | None:
        """The class that it is the score or the probability of; None if it is neither, or about the predicted one."""
        return None

    def as_probability(self) -> Objective | None:
        """The probability of its class, if it is the score or the probability of a class."""
        return None

    def places(self, shape: Sequence[int]) -> list[Index]:
        """Channel and position of a unit in maps of this ``shape``, [N, C, ...]: a number each, or [N] one per sample.

        Raises:
            ValueError: there is no such channel or position, or another number of samples.
        """
        raise TypeError(f"{type(self).__name__} is not one unit")

    @abstractmethod
    def values(self, output: object, activations: Activations) -> Tensor:
        """Values [N] from the ``output`` of the model and the ``activations`` of :attr:`layers`."""

    def missing(self, output: object) -> tuple[Tensor, str] | None:
        """Samples for which the target does not exist, bool [N], so that its value is 0; and the reason, in words.

        None for an objective whose target always exists.
        """
        return None

    @property
    def parts(self) -> Mapping[Hashable, Objective] | None:
        """The parts of an output that it reads, each with the objective that extracts it (:meth:`part`).

        A sweep of a model whose output is not one tensor of scores runs the model with these for its output,
        so that nothing else is computed. None for an objective that reads no particular part.
        """
        return None

    def part(self, output: object) -> Tensor:
        """The part [N, ...] of an ``output`` that is read, the same function for every sample."""
        raise TypeError(f"{type(self).__name__} reads no part of an output")

    def of_parts(self, parts: Mapping[Hashable, Tensor]) -> Tensor:
        """Values [N] from the :attr:`parts` of an output: those of :meth:`values`."""
        raise TypeError(f"{type(self).__name__} reads no part of an output")

    def with_predicted(self, predicted: Tensor) -> Objective:
        """The objective with the ``predicted`` classes, int64 [N], in place of "the class with the highest score"."""
        return self

    def split_targets(self) -> list[Objective]:
        """Objectives with one value per sample each, for one that may have several."""
        return [self]

    def for_samples(self, samples: Tensor, of: int) -> Objective:
        """The objective for a batch of the ``samples`` with these numbers, int64 [P], of a batch of ``of``."""
        return self

    def __repr__(self) -> str:
        # The same in every process: jobs are compared by it.
        inside = ", ".join(f"{name.lstrip('_')}={shown(value)}" for name, value in vars(self).items())
        return f"{type(self).__name__.lstrip('_')}({inside})"

    def _beside(self, index: Tensor, like: Tensor) -> Tensor:
        """``index``, which belongs to the objective, on the device of ``like``. It is copied once, because a copy waits
        for the device."""
        if index.device == like.device:
            return index
        try:
            copies = self._copies
        except AttributeError:
            copies = self._copies = {}
        kept = copies.get((id(index), like.device))
        if kept is None or kept[0] is not index:
            kept = copies[id(index), like.device] = index, index.to(like.device)
        return kept[1]

    def __add__(self, other: Objective) -> Objective:
        return _Sum(((1.0, self), (1.0, other))) if isinstance(other, Objective) else NotImplemented

    def __radd__(self, other: object) -> Objective:
        # sum() of a list of objectives begins with 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, factor: float) -> Objective:
        return _Sum(((float(factor), self),)) if isinstance(factor, (int, float)) else NotImplemented

    def __rmul__(self, factor: float) -> Objective:
        return self * factor

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective) -> Objective:
        return _Sum(((1.0, self), (-1.0, other))) if isinstance(other, Objective) else NotImplemented


class _Sum(Objective):
    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        self.terms = tuple(terms)
        self.layers = tuple(dict.fromkeys(chain.from_iterable(term.layers for _, term in self.terms)))
        self.predicts = any(term.predicts for _, term in self.terms)

    @property
    def scores_read(self) -> frozenset[int] | None:
        return all_scores_read(term for _, term in self.terms)

    @property
    def reads_output(self) -> bool:
        return any(term.reads_output for _, term in self.terms)

    @property
    def samples(self) -> int | None:
        return next((term.samples for _, term in self.terms if term.samples is not None), None)

    def values(self, output: object, activations: Activations) -> Tensor:
        parts = [weight * as_map(term.values(output, activations)) for weight, term in self.terms]
        return torch.stack(parts).sum(0)

    def missing(self, output: object) -> tuple[Tensor, str] | None:
        # A sum exists if any of its terms does.
        found = [term.missing(output) for _, term in self.terms]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        return torch.stack([gone for gone, _ in known]).all(0), "; ".join(dict.fromkeys(words for _, words in known))

    @property
    def parts(self) -> Mapping[Hashable, Objective] | None:
        return all_parts(term for _, term in self.terms)

    def of_parts(self, parts: Mapping[Hashable, Tensor]) -> Tensor:
        return torch.stack([weight * as_map(term.of_parts(parts)) for weight, term in self.terms]).sum(0)

    def with_predicted(self, predicted: Tensor) -> Objective:
        return _Sum([(weight, term.with_predicted(predicted)) for weight, term in self.terms])

    def for_samples(self, samples: Tensor, of: int) -> Objective:
        return _Sum([(weight, term.for_samples(samples, of)) for weight, term in self.terms])


def all_scores_read(objectives: Iterable[Objective]) -> frozenset[int] | None:
    """The scores that several objectives read, if all of them say."""
    found = [objective.scores_read for objective in objectives]
    return None if None in found else frozenset(chain.from_iterable(each for each in found if each is not None))


def all_parts(objectives: Iterable[Objective]) -> Mapping[Hashable, Objective] | None:
    """The parts that several objectives read, if all of them have some."""
    found: dict[Hashable, Objective] = {}
    for objective in objectives:
        parts = objective.parts
        if parts is None:
            return None
        found.update(parts)
    return found
