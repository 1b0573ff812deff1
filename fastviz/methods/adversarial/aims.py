"""The aim of an attack: a class with some probability, or a value of any objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fastviz.engine.optimize import TargetObjective
from fastviz.methods.adversarial.fooling import AttackedModel

__all__ = ["Aim", "ClassAim", "ValueAim", "logit"]


class Aim(ABC):
    """What an attack increases for each picture of a batch, and its goal.

    Attacks increase *values*; the goal is compared with *measures*, which grow with the values. To estimate the
    distance to the goal, attacks use a *linearised* measure, which is nearly linear in the picture.
    """

    goal: float | None
    """The measure at which a picture stops; None for no goal."""
    margin: float
    """How far rounding can move a picture from the goal, in the linearised measure."""

    @abstractmethod
    def values(self, attacked: AttackedModel, pictures: Tensor, rows: Tensor) -> Tensor:
        """The values to increase, [n], in the graph of ``pictures``; ``rows`` are their ascending indices in the
        batch."""

    @abstractmethod
    def measures(self, values: Tensor) -> Tensor:
        """The measures of these values, [n]."""

    @abstractmethod
    def missing(self, values: Tensor) -> Tensor:
        """How much larger than ``values`` the value is that an attack assumes it can reach, [n]."""

    @abstractmethod
    def linearised(self, values: Tensor) -> Tensor:
        """The linearised measures of these values, [n]."""

    @abstractmethod
    def linearised_measures(self, measures: Tensor) -> Tensor:
        """The linearised form of these measures, [n]."""

    @abstractmethod
    def linearised_gradients(self, gradients: Tensor, values: Tensor) -> Tensor:
        """Gradients [n, ...] of the linearised measure, from those of ``values`` [n]."""

    def linearised_goal(self, like: Tensor) -> Tensor:
        """The goal as a linearised measure, in the dtype and on the device of ``like``."""
        assert self.goal is not None
        return self.linearised_measures(like.new_tensor(self.goal))


@dataclass(frozen=True, eq=False)
class ClassAim(Aim):
    """Increases log p of a class until p reaches the goal; log(p / (1 − p)) is nearly linear in the picture.

    Attributes:
        classes: int64 [N], the target class of each picture.
        goal: the probability at which a picture stops.
    """

    classes: Tensor
    goal: float
    margin = 0.01

    def values(self, attacked: AttackedModel, pictures: Tensor, rows: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return attacked.log_probabilities(pictures).gather(1, self.classes[rows][:, None])[:, 0]

    def measures(self, values: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return values.exp()

    def missing(self, values: Tensor) -> Tensor:
        """See :class:`Aim`: log p is at most 0."""
        return -values

    def linearised(self, values: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return logit(values)

    def linearised_measures(self, measures: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return logit(measures.log())

    def linearised_gradients(self, gradients: Tensor, values: Tensor) -> Tensor:
        """See :class:`Aim`: d log(p / (1 − p)) = d log p / (1 − p)."""
        return gradients / -values.expm1()[:, None]


@dataclass(frozen=True, eq=False)
class ValueAim(Aim):
    """Increases the value of an objective until it reaches the goal, or for all steps without one.

    Attributes:
        objective: for images as the network takes them.
        goal: the value at which a picture stops; None for no goal.
    """

    objective: TargetObjective
    goal: float | None

    @property
    def margin(self) -> float:  # type: ignore[override]
        """A thousandth of the goal, the precision of float32 through a deep network."""
        return 0.0 if self.goal is None else 1e-3 * abs(self.goal)

    def values(self, attacked: AttackedModel, pictures: Tensor, rows: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return self.objective(attacked.frame.image(pictures), rows)[0]

    def measures(self, values: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return values

    def missing(self, values: Tensor) -> Tensor:
        """See :class:`Aim`: an attack assumes that it can reach the goal."""
        assert self.goal is not None
        return self.goal - values

    def linearised(self, values: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return values

    def linearised_measures(self, measures: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return measures

    def linearised_gradients(self, gradients: Tensor, values: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return gradients


def logit(logarithm: Tensor) -> Tensor:
    """``log(p / (1 − p))`` from log p, finite even if p is rounded to 1.

    >>> round(logit(torch.tensor(0.9).log()).exp().item(), 4)
    9.0
    """
    tiny = torch.finfo(logarithm.dtype).eps
    return logarithm - (-logarithm.expm1()).clamp(min=tiny).log()
