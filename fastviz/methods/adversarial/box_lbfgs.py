"""The L-BFGS box attack: the smallest change of a picture that makes a network see something else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastviz._util.progress import bar
from fastviz.engine.optimize.optimizers import LBFGS, Evaluation, State, has_pairs, per_row
from fastviz.methods.adversarial.aims import Aim
from fastviz.methods.adversarial.fooling import AttackedModel

__all__ = ["shortest"]

_WEIGHT_FACTOR = 0.75
"""The factor by which the weight of the change's norm decreases from step to step."""
_HISTORY = 6
"""Pairs that L-BFGS keeps; the weight changes before more would be useful."""
_EVALUATIONS = 3
"""Evaluations in the search for the first point at the goal within the last step."""


def shortest(attacked: AttackedModel, aim: Aim, clean: Tensor, steps: int) -> tuple[Tensor, Tensor, bool]:
    """Pictures at the goal, as close to the ``clean`` ones as the box method finds.

    L-BFGS minimises ``weight · ‖r‖² − value(x + r)``, with x + r between black and white, while the weight decreases a
    little after each step, starting where the norm dominates. r follows the minimisers; the goal is first reached at
    the largest weight at which a minimiser reaches it, so with the smallest r. The curvature pairs of L-BFGS can be
    corrected for the new weight, because the curvature of the norm is known: 2 · weight.

    Args:
        attacked: the network; the caller has it inside ``frozen_model``.
        aim: the aim of the attack, with a goal.
        clean: [N, C, H, W], pictures.
        steps: the maximum number of steps.

    Returns:
        the pictures [N, C, H, W] (the last ones if the goal was not reached), the steps taken for each, int64 [N], and
        whether Ctrl-C ended the attack.
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
    return state.final.index_copy(0, state.active, state.pictures), state.step_counts, interrupted


@dataclass(frozen=True, eq=False)
class _State:
    """The complete state between two steps; ``n`` of the ``N`` pictures are not at the goal yet.

    It is replaced as a whole, so that it is consistent after Ctrl-C.
    """

    active: Tensor  # int64 [n], ascending
    pictures: Tensor  # [n, C, H, W]
    values: Tensor  # [n], of the aim at the pictures
    gradients: Tensor  # [n, C, H, W], of the values
    weight: Tensor  # [n], of the squared norm
    history: State  # of L-BFGS, for weight · ‖r‖² − value
    final: Tensor  # [N, C, H, W], of those at the goal
    step_counts: Tensor  # int64 [N]

    def only(self, rows: Tensor) -> _State:
        """The state of only some active ``rows`` (a mask)."""
        names = ("active", "pictures", "values", "gradients", "weight")
        history = {name: value[rows] for name, value in self.history.items()}
        return replace(self, history=history, **{name: getattr(self, name)[rows] for name in names})


@dataclass(frozen=True, eq=False)
class _BoxAttack:
    """The arguments of one call, and its steps."""

    attacked: AttackedModel
    aim: Aim
    clean: Tensor
    optimizer: LBFGS

    def start(self) -> _State:
        """The state at the clean pictures; the weight would let a linear network reach exactly the missing value."""
        everyone = torch.arange(len(self.clean), device=self.clean.device)
        values, gradients = self.attacked.values_and_gradients(self.aim, self.clean, everyone)
        state = _State(
            active=everyone,
            pictures=self.clean,
            values=values,
            gradients=gradients,
            weight=_squared_norm(gradients) / (2 * self.aim.missing(values)).clamp(min=1e-6),
            history=self.optimizer.start(self.clean),
            final=self.clean,
            step_counts=torch.zeros_like(everyone),
        )
        assert self.aim.goal is not None
        return state.only(self.aim.measures(values) < self.aim.goal)

    def advance(self, state: _State) -> _State:
        """One step of L-BFGS for every picture that is not at the goal, followed by a smaller weight."""

        def evaluate(pictures: Tensor, rows: Tensor) -> Evaluation:
            active = state.active[rows]
            values, gradients = self.attacked.values_and_gradients(self.aim, pictures, active)
            return self._evaluation(pictures, values, gradients, active, state.weight[rows])

        now = self._evaluation(state.pictures, state.values, state.gradients, state.active, state.weight)
        history = self._with_first_pair(state, now.gradients)
        bounds = state.weight.new_tensor(0.0), state.weight.new_tensor(1.0)
        moved = self.optimizer.step(state.pictures, now, history, evaluate, bounds)
        assert moved.found is not None
        change = moved.parameters - self.clean[state.active]
        gradients = moved.found.gradients + 2 * per_row(state.weight, change) * change
        weight = _WEIGHT_FACTOR * state.weight
        after = replace(
            state,
            pictures=moved.parameters,
            values=moved.found.values,
            gradients=gradients,
            weight=weight,
            history=self.optimizer.with_more_curvature(moved.state, 2 * (weight - state.weight)),
            step_counts=state.step_counts.index_add(0, state.active, torch.ones_like(state.active)),
        )
        assert self.aim.goal is not None
        reached = moved.found.measures >= self.aim.goal
        return self._without(after, reached, state) if reached.any() else after

    def _evaluation(
        self, pictures: Tensor, values: Tensor, gradients: Tensor, active: Tensor, weight: Tensor
    ) -> Evaluation:
        """The total that L-BFGS increases at ``pictures`` with these values, and its gradient."""
        change = pictures - self.clean[active]
        return Evaluation(
            total=values - weight * _squared_norm(change),
            values=values,
            measures=self.aim.measures(values),
            gradients=gradients - 2 * per_row(weight, change) * change,
            image_gradients=values.new_zeros(0),
        )

    def _with_first_pair(self, state: _State, gradients: Tensor) -> State:
        """The history, with a pair added to rows that have none: along the gradient, with the curvature of the norm.

        The curvature is larger if needed so that the step would not take a linear value beyond its end.
        """
        square = _squared_norm(gradients)
        curvature = torch.maximum(2 * state.weight, square / self.aim.missing(state.values).clamp(min=1e-6))
        rows = ~has_pairs(state.history) & (square > 0) & curvature.isfinite()
        if not rows.any():
            return state.history
        directions = (gradients / per_row(square.sqrt(), gradients))[rows]
        return self.optimizer.with_curvature(state.history, directions, curvature[rows], rows)

    def _without(self, state: _State, reached: Tensor, before: _State) -> _State:
        """``state`` without the pictures that ``reached`` the goal in the step from ``before``."""
        start, end = before.only(reached), state.only(reached)
        first = self._first(start.pictures, start.values, end.pictures, end.values, end.active)
        return replace(state.only(~reached), final=state.final.index_copy(0, end.active, first))

    def _first(self, start: Tensor, value: Tensor, end: Tensor, end_value: Tensor, rows: Tensor) -> Tensor:
        """The first pictures at the goal on the line from ``start``, below it, to ``end``, at it."""
        assert self.aim.goal is not None
        goal = self.aim.linearised_goal(value)
        low, high = torch.zeros_like(value), torch.ones_like(value)
        below, above = self.aim.linearised(value) - goal, self.aim.linearised(end_value) - goal
        for _ in range(_EVALUATIONS):
            # A little beyond where the linearised measure would reach the goal if it were linear, so that it is
            # reached.
            share = (-below / (above - below)).clamp(0, 1)
            place = low + (high - low) * (share + 0.1 * (1 - share))
            found = self.aim.measures(self.attacked.values(self.aim, start.lerp(end, per_row(place, start)), rows))
            over = self.aim.linearised_measures(found) - goal
            there = found >= self.aim.goal
            low, below = torch.where(there, low, place), torch.where(there, below, over)
            high, above = torch.where(there, place, high), torch.where(there, over, above)
        return torch.where(per_row(high, start) == 1, end, start.lerp(end, per_row(high, start)))


def _squared_norm(values: Tensor) -> Tensor:
    """The squared norm of each row of ``values`` [n, C, H, W]."""
    return values.square().sum((1, 2, 3))
