"""The state of the optimisation loop between steps, how images stop, and the loop's result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastviz.engine.optimize.optimizers import Evaluation, Optimizer, State, per_row
from fastviz.execution.precision import map_dtype

__all__ = ["Optimized", "RunState", "begin", "longer_history", "restored", "stop", "to_save", "with_best"]


@dataclass(frozen=True, eq=False)
class Optimized:
    """The result of :func:`fastviz.engine.optimize.optimize`, one row per image.

    Attributes:
        parameters: [N, ...], of the canvas.
        images: [N, C, H, W] as the network takes them.
        values: [N], the objective at these images, without transforms and penalties.
        measures: [N], the values that a goal is compared with, at these images.
        totals: [N], values minus penalties.
        steps: int64 [N], steps until each image stopped.
        history: [S, N], the objective before each step (with transforms: of the transformed image); NaN after an image
            has stopped.
        reasons: why each image stopped: ``"goal"``, ``"steps"`` (all done), ``"converged"`` (no step increases the
            total), ``"interrupted"`` (Ctrl-C), or a description of the cause, such as ``"the objective became nan at
            step 3"``.
    """

    parameters: Tensor
    images: Tensor
    values: Tensor
    measures: Tensor
    totals: Tensor
    steps: Tensor
    history: Tensor
    reasons: tuple[str, ...]

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it early."""
        return "interrupted" in self.reasons


@dataclass(frozen=True, eq=False)
class RunState:
    """The complete state between two steps. It is replaced as a whole, so that it is consistent after Ctrl-C.

    Of ``N`` images, ``n`` are still active. ``good`` are the parameters of the last finite evaluation.
    """

    step: int
    active: Tensor  # int64 [n], ascending
    parameters: Tensor  # [n, ...]
    good: Tensor  # [n, ...]
    optimizer: State
    found: Evaluation | None  # at parameters, if the previous step evaluated there
    final: Tensor  # [N, ...], of images that have stopped
    best: Tensor  # [N, ...], those of best_totals
    best_totals: Tensor  # [N]
    steps: Tensor  # int64 [N]
    history: Tensor  # [S, N]
    reasons: tuple[str, ...]  # N; empty for active ones


def begin(parameters: Tensor, optimizer: Optimizer) -> RunState:
    """The state before the first step, each image at its row of ``parameters``."""
    N = len(parameters)
    return RunState(
        step=0,
        active=torch.arange(N, device=parameters.device),
        parameters=parameters,
        good=parameters,
        optimizer=optimizer.start(parameters) if N else {},
        found=None,
        final=parameters,
        best=parameters,
        best_totals=parameters.new_full((N,), -torch.inf, dtype=map_dtype(parameters.dtype)),
        steps=torch.zeros(N, dtype=torch.int64, device=parameters.device),
        history=parameters.new_zeros(0, N, dtype=map_dtype(parameters.dtype)),
        reasons=("",) * N,
    )


def longer_history(history: Tensor, steps: int) -> Tensor:
    """A history of at least ``steps`` rows; new ones are NaN."""
    return torch.cat([history, history.new_full((max(0, steps - len(history)), history.shape[1]), torch.nan)])


def to_save(state: RunState) -> dict[str, Any]:
    """The content of a checkpoint: tensors, numbers, strings, and lists of them."""
    values = dict(vars(state))
    values["found"] = None if state.found is None else list(state.found)
    values["reasons"] = list(state.reasons)
    return values


def restored(saved: dict[str, Any], steps: int) -> RunState:
    """The state of a checkpoint, for a run of ``steps``.

    Raises:
        ValueError: the checkpoint has already done more steps.
    """
    if saved["step"] > steps:
        raise ValueError(f"steps should be at least the {saved['step']} that the checkpoint has, got {steps}")
    found = saved["found"]
    return RunState(**saved | {"found": found and Evaluation(*found), "reasons": tuple(saved["reasons"])})


def with_best(state: RunState, totals: Tensor) -> RunState:
    """``state`` with the best parameters updated where ``totals`` exceed all earlier ones."""
    # All rows are written, the better ones with new values, because selecting the better ones would wait for the
    # device.
    everyone = len(state.active) == len(state.best)
    best, before = (kept if everyone else kept[state.active] for kept in (state.best, state.best_totals))
    better = totals > before
    best = torch.where(per_row(better, best), state.parameters, best)
    before = torch.where(better, totals.to(before.dtype), before)
    if not everyone:
        best = state.best.index_copy(0, state.active, best)
        before = state.best_totals.index_copy(0, state.active, before)
    return replace(state, best=best, best_totals=before)


def stop(state: RunState, stops: Tensor, why: str | Sequence[str]) -> RunState:
    """``state`` without the rows that ``stops`` (bool [n]) marks, which keep their parameters."""
    if not stops.any():
        return state
    stopped = state.active[stops]
    reasons = list(state.reasons)
    for row, number in zip(stops.nonzero()[:, 0].tolist(), stopped.tolist(), strict=True):
        reasons[number] = why if isinstance(why, str) else why[row]
    rest = ~stops
    return replace(
        state,
        active=state.active[rest],
        parameters=state.parameters[rest],
        good=state.good[rest],
        optimizer={name: value[rest] for name, value in state.optimizer.items()},
        found=None if state.found is None else state.found.select(rest),
        final=state.final.index_copy(0, stopped, state.parameters[stops]),
        steps=state.steps.index_fill(0, stopped, state.step),
        reasons=tuple(reasons),
    )
