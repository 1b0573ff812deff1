"""The L-BFGS box attack: the shortest change of a picture that makes a network see something else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastviz._util.progress import bar
from fastviz.engine.optimize.optimizers import LBFGS, Evaluation, State, has_pairs
from fastviz.methods.adversarial.aims import Aim
from fastviz.methods.adversarial.fooling import AttackedModel

__all__ = ["shortest"]

_FALL = 0.75
"""How much smaller the weight of the change's length becomes from one step to the next."""
_HISTORY = 6
"""Pairs that L-BFGS keeps: the weight changes before more of them would tell anything."""
_LOOKS = 3
"""How often the last stretch is looked at for the first point that is at the goal."""


def shortest(attacked: AttackedModel, aim: Aim, clean: Tensor, steps: int) -> tuple[Tensor, Tensor, bool]:
    """Pictures at the goal as near to the ``clean`` ones as the box method finds them.

    ``weight · ‖r‖² − value(x + r)``, x + r between black and white, is minimised by L-BFGS, while the weight falls a
    little after each step, from where the length outweighs the value. r follows the minimisers; the goal is first
    reached at the largest weight at which a minimiser reaches it, so at the shortest r. What L-BFGS knows about the
    curvature stays true, because that of the length is known: 2 · weight.

    Args:
        attacked: the network, held in ``frozen_model`` by the caller.
        aim: what is to be seen in each picture; it has a goal.
        clean: [N, C, H, W], pictures.
        steps: the maximum number of steps.

    Returns:
        pictures [N, C, H, W] (where the goal was not reached: as far as it got), the steps taken by each, int64 [N],
        and whether Ctrl-C ended it.
    """
    attack = _BoxAttack(attacked, aim, clean, LBFGS(history=_HISTORY))
    state = attack.start()
    interrupted = False
    with bar(attacked.progress, steps, text="shortening the change", unit="steps") as advance:
        try:
            for _ in range(steps):
                if not len(state.active):
                    break
                state = attack.advance(state)
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
    values: Tensor  # [n], of the aim at them
    gradients: Tensor  # [n, C, H, W], of the values
    weight: Tensor  # [n], of the squared length
    history: State  # of L-BFGS, for weight · ‖r‖² − value
    final: Tensor  # [N, C, H, W], of those at the goal
    taken: Tensor  # int64 [N]

    def only(self, rows: Tensor) -> _State:
        """The state of some of the active ``rows`` (a mask)."""
        names = ("active", "pictures", "values", "gradients", "weight")
        history = {name: value[rows] for name, value in self.history.items()}
        return replace(self, history=history, **{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True, eq=False)
class _BoxAttack:
    """The arguments of one call, and the steps that they make."""

    attacked: AttackedModel
    aim: Aim
    clean: Tensor
    optimizer: LBFGS

    def start(self) -> _State:
        """At the clean pictures, with the weight at which a linear network would just make up for the whole loss."""
        everyone = torch.arange(len(self.clean), device=self.clean.device)
        values, gradients = self.attacked.values_and_gradients(self.aim, self.clean, everyone)
        state = _State(
            active=everyone,
            pictures=self.clean,
            values=values,
            gradients=gradients,
            weight=_square(gradients) / (2 * self.aim.missing(values)).clamp(min=1e-6),
            history=self.optimizer.start(self.clean),
            final=self.clean,
            taken=torch.zeros_like(everyone),
        )
        assert self.aim.goal is not None
        return state.only(self.aim.measures(values) < self.aim.goal)

    def advance(self, state: _State) -> _State:
        """One step of L-BFGS for every picture that is not at the goal, then a smaller weight."""

        def evaluate(pictures: Tensor, rows: Tensor) -> Evaluation:
            active = state.active[rows]
            values, gradients = self.attacked.values_and_gradients(self.aim, pictures, active)
            return self._weighed(pictures, values, gradients, active, state.weight[rows])

        now = self._weighed(state.pictures, state.values, state.gradients, state.active, state.weight)
        history = self._begun(state, now.gradients)
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
            history=self.optimizer.with_more_curvature(moved.state, 2 * (weight - state.weight)),
            taken=state.taken.index_add(0, state.active, torch.ones_like(state.active)),
        )
        assert self.aim.goal is not None
        reached = moved.found.measures >= self.aim.goal
        return self._without(after, reached, state) if reached.any() else after

    def _weighed(
        self, pictures: Tensor, values: Tensor, gradients: Tensor, active: Tensor, weight: Tensor
    ) -> Evaluation:
        """What L-BFGS is to increase at ``pictures`` with these values, and its gradient."""
        change = pictures - self.clean[active]
        return Evaluation(
            total=values - weight * _square(change),
            values=values,
            measures=self.aim.measures(values),
            gradients=gradients - 2 * _column(weight) * change,
            image_gradients=values.new_zeros(0),
        )

    def _begun(self, state: _State, gradients: Tensor) -> State:
        """The history, with a pair in rows that have none: along the gradient, with the curvature of the length.

        Or with as much more that the step would raise the value, if that were linear, to its end and no further.
        """
        square = _square(gradients)
        curvature = torch.maximum(2 * state.weight, square / self.aim.missing(state.values).clamp(min=1e-6))
        rows = ~has_pairs(state.history) & (square > 0) & curvature.isfinite()
        if not rows.any():
            return state.history
        directions = (gradients / _column(square.sqrt()))[rows]
        return self.optimizer.with_curvature(state.history, directions, curvature[rows], rows)

    def _without(self, state: _State, reached: Tensor, before: _State) -> _State:
        """``state`` without those that have ``reached`` the goal on the way from ``before``."""
        start, end = before.only(reached), state.only(reached)
        first = self._first(start.pictures, start.values, end.pictures, end.values, end.active)
        return replace(state.only(~reached), final=state.final.index_copy(0, end.active, first))

    def _first(self, start: Tensor, value: Tensor, end: Tensor, end_value: Tensor, rows: Tensor) -> Tensor:
        """The first pictures at the goal on the straight way from ``start``, below it, to ``end``, at it."""
        assert self.aim.goal is not None
        goal = self.aim.straight_goal(value)
        low, high = torch.zeros_like(value), torch.ones_like(value)
        below, above = self.aim.straightened(value) - goal, self.aim.straightened(end_value) - goal
        for _ in range(_LOOKS):
            # A little beyond where the straightened measure would meet the goal if it were linear, so that it does.
            share = (-below / (above - below)).clamp(0, 1)
            place = low + (high - low) * (share + 0.1 * (1 - share))
            found = self.aim.measures(self.attacked.values(self.aim, start.lerp(end, _column(place)), rows))
            over = self.aim.straightened_measures(found) - goal
            there = found >= self.aim.goal
            low, below = torch.where(there, low, place), torch.where(there, below, over)
            high, above = torch.where(there, place, high), torch.where(there, over, above)
        return torch.where(_column(high) == 1, end, start.lerp(end, _column(high)))


def _square(values: Tensor) -> Tensor:
    """The squared length of each row of ``values`` [n, C, H, W]."""
    return values.square().sum((1, 2, 3))


def _column(numbers: Tensor) -> Tensor:
    """One number a picture, [n], to be multiplied with pictures."""
    return numbers.view(-1, 1, 1, 1)
