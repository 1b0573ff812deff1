"""The box method: the shortest change of a picture that makes a network sure of another class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastviz._util.progress import bar
from fastviz.engine.optimize.optimizers import LBFGS, Evaluation, State
from fastviz.methods.adversarial.fooling import Victim, logit

__all__ = ["shortest"]

_FALL = 0.75
"""How much smaller the weight of the change's length becomes from one step to the next."""
_HISTORY = 6
"""Pairs that L-BFGS keeps: the weight changes before more of them would tell anything."""
_LOOKS = 3
"""How often the last stretch is looked at for the first point that is at the goal."""


def shortest(victim: Victim, clean: Tensor, classes: Tensor, steps: int) -> tuple[Tensor, Tensor, bool]:
    """Pictures at the goal as near to the ``clean`` ones as the box method finds them.

    ``weight · ‖r‖² − log p(x + r)``, x + r between black and white, is minimised by L-BFGS while the weight falls, a
    little after each step, from where the length outweighs the class: r follows the minimisers, and the goal is first
    reached at the largest weight, so at the shortest r, at which a minimiser reaches it. What L-BFGS knows about the
    curvature stays true, because that of the length is known: 2 · weight.

    Args:
        victim: the network, held in ``frozen_model`` by the caller.
        clean: [N, C, H, W], pictures.
        classes: int64 [N], the class to be seen in each.
        steps: most steps.

    Returns:
        pictures [N, C, H, W] (where the goal was not reached: as far as it got), the steps taken by each, int64 [N],
        and whether Ctrl-C ended it.
    """
    walk = _Walk(victim, clean, classes, LBFGS(history=_HISTORY))
    state = walk.start()
    interrupted = False
    with bar(victim.progress, steps, text="shortening the change", unit="steps") as advance:
        try:
            for _ in range(steps):
                if not len(state.active):
                    break
                state = walk.advance(state)
                advance(1)
        except KeyboardInterrupt:
            interrupted = True
    return state.final.index_copy(0, state.active, state.pictures), state.taken, interrupted


@dataclass(frozen=True, eq=False)
class _State:
    """Everything between two steps; ``n`` of the ``N`` pictures are not at the goal yet.

    Replaced as a whole, so that Ctrl-C finds it complete.
    """

    active: Tensor  # int64 [n], rising
    pictures: Tensor  # [n, C, H, W]
    values: Tensor  # [n], log p at them
    gradients: Tensor  # [n, C, H, W], of log p
    weight: Tensor  # [n], of the squared length
    history: State  # L-BFGS's, of weight · ‖r‖² − log p
    final: Tensor  # [N, C, H, W], of those at the goal
    taken: Tensor  # int64 [N]

    def only(self, rows: Tensor) -> _State:
        """The state of some of the active ``rows`` (a mask)."""
        names = ("active", "pictures", "values", "gradients", "weight")
        history = {name: value[rows] for name, value in self.history.items()}
        return replace(self, history=history, **{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True, eq=False)
class _Walk:
    """The arguments of one call, and the steps that they make."""

    victim: Victim
    clean: Tensor
    classes: Tensor
    optimizer: LBFGS

    def start(self) -> _State:
        """At the clean pictures, the weight such that a linear network would just make up for the whole loss."""
        values, gradients = self.victim.look(self.clean, self.classes)
        return _State(
            active=torch.arange(len(self.clean), device=self.clean.device),
            pictures=self.clean,
            values=values,
            gradients=gradients,
            weight=_square(gradients) / (-2 * values).clamp(min=1e-6),
            history=self.optimizer.start(self.clean),
            final=self.clean,
            taken=torch.zeros_like(self.classes),
        )

    def advance(self, state: _State) -> _State:
        """One step of L-BFGS for every picture that is not at the goal, then a smaller weight."""

        def evaluate(pictures: Tensor, rows: Tensor) -> Evaluation:
            values, gradients = self.victim.look(pictures, self.classes[state.active[rows]])
            return self._weighed(pictures, values, gradients, state.active[rows], state.weight[rows])

        now = self._weighed(state.pictures, state.values, state.gradients, state.active, state.weight)
        history = _begun(state.history, now.gradients, state.weight, state.values)
        bounds = state.weight.new_tensor(0.0), state.weight.new_tensor(1.0)
        moved = self.optimizer.step(state.pictures, now, history, evaluate, bounds)
        assert moved.found is not None
        change = moved.parameters - self.clean[state.active]
        gradients = moved.found.gradients + 2 * _column(state.weight) * change
        weight = _FALL * state.weight
        after = replace(
            state,
            pictures=moved.parameters,
            values=moved.found.values,
            gradients=gradients,
            weight=weight,
            history=_reweighed(moved.state, weight - state.weight),
            taken=state.taken.index_add(0, state.active, torch.ones_like(state.active)),
        )
        reached = moved.found.measures >= self.victim.goal
        return self._without(after, reached, state) if reached.any() else after

    def _weighed(
        self, pictures: Tensor, values: Tensor, gradients: Tensor, active: Tensor, weight: Tensor
    ) -> Evaluation:
        """What L-BFGS is to increase at ``pictures`` with these log p, and its gradient."""
        change = pictures - self.clean[active]
        return Evaluation(
            total=values - weight * _square(change),
            values=values,
            measures=values.exp(),
            gradients=gradients - 2 * _column(weight) * change,
            image_gradients=values.new_zeros(0),
        )

    def _without(self, state: _State, reached: Tensor, before: _State) -> _State:
        """``state`` without those that have ``reached`` the goal on the way from ``before``."""
        start, end = before.only(reached), state.only(reached)
        first = self._first(start.pictures, start.values, end.pictures, end.values, self.classes[end.active])
        return replace(state.only(~reached), final=state.final.index_copy(0, end.active, first))

    def _first(self, start: Tensor, value: Tensor, end: Tensor, end_value: Tensor, classes: Tensor) -> Tensor:
        """The first pictures at the goal on the straight way from ``start``, below it, to ``end``, at it."""
        goal = logit(torch.full_like(value, self.victim.goal).log())
        low, high = torch.zeros_like(value), torch.ones_like(value)
        below, above = logit(value) - goal, logit(end_value) - goal
        for _ in range(_LOOKS):
            # log(p / (1 − p)) is nearly straight; a little beyond where it would meet the goal, so that it does.
            share = (-below / (above - below)).clamp(0, 1)
            place = low + (high - low) * (share + 0.1 * (1 - share))
            found = self.victim.probabilities(start.lerp(end, _column(place))).gather(1, classes[:, None])[:, 0]
            over = logit(found.log()) - goal
            there = found >= self.victim.goal
            low, below = torch.where(there, low, place), torch.where(there, below, over)
            high, above = torch.where(there, place, high), torch.where(there, over, above)
        return torch.where(_column(high) == 1, end, start.lerp(end, _column(high)))


def _begun(history: State, gradients: Tensor, weight: Tensor, values: Tensor) -> State:
    """``history`` with a pair in rows that have none: along the gradient, with the curvature of the length.

    Or with as much more that the step would raise log p, if that were linear, to 0 and no further.
    """
    none = ~(history["rho"] > 0).any(1)
    square = _square(gradients)
    curvature = torch.maximum(2 * weight, square / (-values).clamp(min=1e-6))
    none &= (square > 0) & curvature.isfinite()
    if not none.any():
        return history
    direction = (gradients / _column(square.sqrt())).flatten(1)[none]
    begun = {name: value.clone() for name, value in history.items()}
    begun["s"][none, -1] = direction
    begun["y"][none, -1] = curvature[none][:, None] * direction
    begun["rho"][none, -1] = begun["gamma"][none] = 1 / curvature[none]
    return begun


def _reweighed(history: State, more: Tensor) -> State:
    """``history`` when the weight of the squared length grows by ``more`` [n]; pairs that have no use then are gone."""
    s = history["s"]
    y = history["y"] + 2 * more[:, None, None] * s
    product, length = (s * y).sum(2), y.square().sum(2)
    good = (history["rho"] > 0) & (product > 1e-10 * length) & (length > 0)
    gamma = history["gamma"]
    for number in range(s.shape[1]):  # the newest decides
        gamma = torch.where(good[:, number], product[:, number] / length[:, number], gamma)
    return {"s": s, "y": y, "rho": torch.where(good, 1 / product, 0), "gamma": gamma}


def _square(values: Tensor) -> Tensor:
    """The squared length of each row of ``values`` [n, C, H, W]."""
    return values.square().sum((1, 2, 3))


def _column(numbers: Tensor) -> Tensor:
    """One number a picture, [n], to be multiplied with pictures."""
    return numbers.view(-1, 1, 1, 1)
