"""What an attack makes a network see: a class with some probability, or a value of any objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fastviz.engine.optimize import TargetObjective
from fastviz.methods.adversarial.fooling import AttackedModel

__all__ = ["Aim", "ClassAim", "ValueAim", "logit"]


class Aim(ABC):
    """What is increased for each picture of a batch, and when it is enough.

    Attacks increase *values*; a *measure* is what the goal is compared with. Both grow together. Where an attack has to
    guess how far it is to the goal, it uses a *straightened* measure, which is nearly linear in the picture.
    """

    goal: float | None
    """The measure at which a picture is done; None if there is none."""
    margin: float
    """How far from the goal, in the straightened measure, rounding can take a picture."""

    @abstractmethod
    def values(self, attacked: AttackedModel, pictures: Tensor, rows: Tensor) -> Tensor:
        """What is increased, [n], in the graph of ``pictures``, whose numbers in the batch are ``rows``, rising."""

    @abstractmethod
    def measures(self, values: Tensor) -> Tensor:
        """What the goal is compared with, [n], for these values."""

    @abstractmethod
    def missing(self, values: Tensor) -> Tensor:
        """How much larger than ``values`` the largest value is that an attack reckons with, [n]."""

    @abstractmethod
    def straightened(self, values: Tensor) -> Tensor:
        """The straightened measure of these values, [n]."""

    @abstractmethod
    def straightened_measures(self, measures: Tensor) -> Tensor:
        """The straightened measure of these measures, [n]."""

    @abstractmethod
    def steepened(self, gradients: Tensor, values: Tensor) -> Tensor:
        """Gradients [n, ...] of the straightened measure, from those of ``values`` [n]."""

    def straight_goal(self, like: Tensor) -> Tensor:
        """The goal as a straightened measure, in the dtype and on the device of ``like``."""
        assert self.goal is not None
        return self.straightened_measures(like.new_tensor(self.goal))


@dataclass(frozen=True, eq=False)
class ClassAim(Aim):
    """log p of a class is increased until p is the goal; log(p / (1 − p)) is nearly linear in the picture.

    Attributes:
        classes: int64 [N], the class to be seen in each picture.
        goal: the probability at which a picture is done.
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
        """See :class:`Aim`: log p ends at 0."""
        return -values

    def straightened(self, values: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return logit(values)

    def straightened_measures(self, measures: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return logit(measures.log())

    def steepened(self, gradients: Tensor, values: Tensor) -> Tensor:
        """See :class:`Aim`: d log(p / (1 − p)) = d log p / (1 − p)."""
        return gradients / -values.expm1()[:, None]


@dataclass(frozen=True, eq=False)
class ValueAim(Aim):
    """The value of an objective is increased until it is the goal, or for all steps where there is none.

    Attributes:
        objective: of the images as the network takes them.
        goal: the value at which a picture is done; None for none.
    """

    objective: TargetObjective
    goal: float | None

    @property
    def margin(self) -> float:  # type: ignore[override]
        """A thousandth of the goal: what float32 keeps through a deep network."""
        return 0.0 if self.goal is None else 1e-3 * abs(self.goal)

    def values(self, attacked: AttackedModel, pictures: Tensor, rows: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return self.objective(attacked.frame.image(pictures), rows)[0]

    def measures(self, values: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return values

    def missing(self, values: Tensor) -> Tensor:
        """See :class:`Aim`: an attack reckons with the goal."""
        assert self.goal is not None
        return self.goal - values

    def straightened(self, values: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return values

    def straightened_measures(self, measures: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return measures

    def steepened(self, gradients: Tensor, values: Tensor) -> Tensor:
        """See :class:`Aim`."""
        return gradients


def logit(logarithm: Tensor) -> Tensor:
    """``log(p / (1 − p))`` of log p, finite where p is rounded to 1.

    >>> round(logit(torch.tensor(0.9).log()).exp().item(), 4)
    9.0
    """
    tiny = torch.finfo(logarithm.dtype).eps
    return logarithm - (-logarithm.expm1()).clamp(min=tiny).log()
