"""Optimisers: normalised gradient ascent, Adam, L-BFGS.

All work on a batch in which every row is an independent problem: its state, step length and line search never depend on
other rows, so a row gives the same result alone. States are dicts of tensors with one row per problem, so rows can be
selected and states saved directly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastviz._util import checks

__all__ = ["LBFGS", "Adam", "Ascent", "Evaluation", "Optimizer", "State", "by_name", "has_pairs", "per_row", "within"]

State: TypeAlias = dict[str, Tensor]
Bounds: TypeAlias = tuple[Tensor, Tensor] | None


class Evaluation(NamedTuple):
    """The objective and its gradients at some parameters, one row per problem.

    ``total`` [n] is the objective minus all penalties, which optimisers increase; ``values`` [n] the objective alone;
    ``measures`` [n] the values that a goal is compared with; ``gradients`` [n, ...] the gradients of ``total`` for the
    parameters; ``image_gradients`` those for the images if a prior reads them, else empty.
    """

    total: Tensor
    values: Tensor
    measures: Tensor
    gradients: Tensor
    image_gradients: Tensor

    def select(self, rows: Tensor) -> Evaluation:
        """The evaluation of the ``rows`` (indices or a mask)."""
        return Evaluation(*(part[rows] if len(part) else part for part in self))

    def replaced(self, rows: Tensor, other: Evaluation) -> Evaluation:
        """The evaluation with the ``rows`` replaced by ``other``."""
        return Evaluation(
            *(mine.index_copy(0, rows, new) if len(mine) else mine for mine, new in zip(self, other, strict=True))
        )


Evaluate: TypeAlias = Callable[[Tensor, Tensor], Evaluation]
"""Evaluates parameters [k, ...] of the problems with row indices int64 [k]."""


class Step(NamedTuple):
    """The result of a step.

    ``found`` is the evaluation at the new parameters if the step computed it; ``stuck``, bool [n], marks rows that
    cannot be improved.
    """

    parameters: Tensor
    state: State
    found: Evaluation | None = None
    stuck: Tensor | None = None


class Optimizer(ABC):
    """An optimiser that increases ``total``."""

    random_objective: bool = True
    """Whether it works with an objective that changes from step to step, as with random transforms."""

    @abstractmethod
    def start(self, parameters: Tensor) -> State:
        """The state before the first step."""

    @abstractmethod
    def step(self, parameters: Tensor, now: Evaluation, state: State, evaluate: Evaluate, bounds: Bounds) -> Step:
        """One step from ``parameters``, whose evaluation is ``now``; the result lies within the ``bounds``."""


def within(parameters: Tensor, bounds: Bounds) -> Tensor:
    """``parameters`` clipped to the ``bounds``."""
    return parameters if bounds is None else torch.minimum(torch.maximum(parameters, bounds[0]), bounds[1])


def per_row(numbers: Tensor, like: Tensor) -> Tensor:
    """One number per row, [n], in a shape that broadcasts with ``like`` [n, ...]."""
    return numbers.view(-1, *(1,) * (like.dim() - 1))


@dataclass(frozen=True)
class Ascent(Optimizer):
    """Gradient ascent: ``p + learning_rate · g``, with the gradient of each row normalised.

    Attributes:
        learning_rate: step size: with ``"rms"`` the root mean square of the change, with ``"sign"`` the change of each
            number.
        norm: ``"rms"`` divides by the root mean square of the row's gradient; ``"sign"`` takes only its sign;
            ``"none"`` leaves it unchanged.
    """

    learning_rate: float = 0.05
    norm: Literal["rms", "sign", "none"] = "rms"

    def __post_init__(self) -> None:
        checks.positive(self.learning_rate, "learning_rate")
        checks.one_of(self.norm, "norm", ("rms", "sign", "none"))

    def start(self, parameters: Tensor) -> State:
        """There is no state."""
        return {}

    def step(self, parameters: Tensor, now: Evaluation, state: State, evaluate: Evaluate, bounds: Bounds) -> Step:
        """See the class."""
        g = now.gradients
        if self.norm == "sign":
            g = g.sign()
        elif self.norm == "rms":
            size = g.flatten(1).square().mean(1).sqrt()
            # A gradient of zero stays zero.
            g = g / per_row(torch.where(size > 0, size, 1), g)
        return Step(within(parameters + self.learning_rate * g, bounds), state)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma, Ba 2015, https://arxiv.org/abs/1412.6980) with their constants: steps of about
    ``learning_rate``."""

    learning_rate: float = 0.02

    def __post_init__(self) -> None:
        checks.positive(self.learning_rate, "learning_rate")

    def start(self, parameters: Tensor) -> State:
        """First and second moments, and the number of steps."""
        return {
            "mean": torch.zeros_like(parameters),
            "square": torch.zeros_like(parameters),
            "steps": parameters.new_zeros(len(parameters)),
        }

    def step(self, parameters: Tensor, now: Evaluation, state: State, evaluate: Evaluate, bounds: Bounds) -> Step:
        """See the class."""
        g = now.gradients
        mean, steps = state["mean"].lerp(g, 0.1), state["steps"] + 1
        square = (0.999 * state["square"]).addcmul_(g, g, value=0.001)
        first, second = (per_row(1 - beta**steps, g) for beta in (0.9, 0.999))
        # learning_rate · (mean / first) / (√(square / second) + 1e-8), in as few passes over memory as possible
        below = (square / second).sqrt_().add_(1e-8).mul_(first / self.learning_rate)
        moved = torch.addcdiv(parameters, mean, below)
        return Step(within(moved, bounds), {"mean": mean, "square": square, "steps": steps})


@dataclass(frozen=True)
class LBFGS(Optimizer):
    """Limited-memory BFGS: Nocedal 1980, with the line search of Lewis, Overton 2013 (weak Wolfe conditions).

    "Nonsmooth optimization via quasi-Newton methods", https://doi.org/10.1007/s10107-012-0514-2. If parameters have
    bounds, those at a bound that the gradient pushes outwards stay fixed, the others move along the projected path, and
    the line search only requires sufficient increase.

    Attributes:
        history: how many pairs of steps and gradient changes are kept; they take 2 · history times the memory of the
            parameters.
        learning_rate: root mean square of the first change that is tried.
        evaluations: the maximum number of evaluations in a line search. A row that finds no increase drops its history;
            if it had none, it is stuck.
    """

    history: int = 10
    learning_rate: float = 0.05
    evaluations: int = 20
    random_objective = False

    def __post_init__(self) -> None:
        checks.whole_number(self.history, "history", minimum=1)
        checks.positive(self.learning_rate, "learning_rate")
        checks.whole_number(self.evaluations, "evaluations", minimum=1)

    def start(self, parameters: Tensor) -> State:
        """Pairs (newest last), 1 / (s · y) of each (0: no pair), and the scale of the initial inverse Hessian."""
        n = len(parameters)
        pairs = parameters.new_zeros(n, self.history, parameters[0].numel())
        return {
            "s": pairs,
            "y": pairs.clone(),
            "rho": parameters.new_zeros(n, self.history),
            "gamma": parameters.new_ones(n),
        }

    def step(self, parameters: Tensor, now: Evaluation, state: State, evaluate: Evaluate, bounds: Bounds) -> Step:
        """See the class."""
        x, g = parameters.flatten(1), -now.gradients.flatten(1)  # of −total, which is minimised
        free = torch.ones_like(x, dtype=torch.bool)
        if bounds is not None:
            low, high = (bound.expand_as(parameters).flatten(1) for bound in bounds)
            free = ~(((x <= low) & (g > 0)) | ((x >= high) & (g < 0)))
        g_free = g * free
        d = -_inverse_hessian(g_free, state) * free
        slope = (d * g).sum(1)
        # If there are no pairs, or they do not give a descent direction, follow the gradient.
        plain = ~has_pairs(state) | ~(slope < 0)
        size = g_free.square().mean(1).sqrt()
        steepest = -g_free * (self.learning_rate / torch.where(size > 0, size, 1))[:, None]
        d = torch.where(plain[:, None], steepest, d)

        new, found, moved = self._search(parameters, d.view_as(parameters), now, evaluate, bounds)
        s, y = new.flatten(1) - x, -found.gradients.flatten(1) - g
        state = _remember(state, s, y, moved)
        state = state | {"rho": torch.where(moved[:, None], state["rho"], 0)}
        return Step(new, state, found, ~moved & plain)

    def with_curvature(self, state: State, directions: Tensor, curvature: Tensor, rows: Tensor) -> State:
        """``state`` with a pair in the ``rows`` that sets the curvature along one direction.

        For callers who know the curvature before any step measures it.

        Args:
            state: from :meth:`start` or a step.
            directions: [k, ...], of length 1 in each row.
            curvature: [k], above 0: the second derivative of −total along the directions.
            rows: bool [n] with k True: the rows that get the pair as their newest.
        """
        changed = {name: value.clone() for name, value in state.items()}
        flat = directions.flatten(1)
        changed["s"][rows, -1] = flat
        changed["y"][rows, -1] = curvature[:, None] * flat
        changed["rho"][rows, -1] = changed["gamma"][rows] = 1 / curvature
        return changed

    def with_more_curvature(self, state: State, more: Tensor) -> State:
        """``state`` after the curvature of −total has changed by ``more`` [n] in every direction.

        This happens when a term ``weight · ‖p − p₀‖²`` of −total gets another weight; ``more`` is then twice the
        difference. A pair whose curvature would no longer be above 0 is dropped.
        """
        s = state["s"]
        y = state["y"] + more[:, None, None] * s
        product, length = (s * y).sum(2), y.square().sum(2)
        good = (state["rho"] > 0) & _has_positive_curvature(product, length)
        gamma = state["gamma"]
        for number in range(s.shape[1]):  # the newest pair decides
            gamma = torch.where(good[:, number], product[:, number] / length[:, number], gamma)
        return {"s": s, "y": y, "rho": torch.where(good, 1 / product, 0), "gamma": gamma}

    def _search(
        self, start: Tensor, d: Tensor, now: Evaluation, evaluate: Evaluate, bounds: Bounds
    ) -> tuple[Tensor, Evaluation, Tensor]:
        """Line search by bisection along ``d`` (Lewis, Overton): new parameters, their evaluation, and which rows
        moved."""
        g = -now.gradients
        slope = (d * g).flatten(1).sum(1)
        low, high = torch.zeros_like(slope), torch.full_like(slope, torch.inf)
        t = torch.ones_like(slope)
        place, found, moved = start, now, torch.zeros_like(slope, dtype=torch.bool)
        searching = (slope < 0).nonzero()[:, 0]
        for _ in range(self.evaluations):
            if not len(searching):
                break
            there = within(start[searching] + per_row(t[searching], start) * d[searching], bounds)
            tried = evaluate(there, searching)
            expected = (g[searching] * (there - start[searching])).flatten(1).sum(1)
            finite = tried.total.isfinite() & tried.gradients.flatten(1).isfinite().all(1)
            enough = finite & (-tried.total <= -now.total[searching] + 1e-4 * expected)
            flat = -(tried.gradients * d[searching]).flatten(1).sum(1) >= 0.9 * slope[searching]
            good = enough & (flat if bounds is None else torch.ones_like(flat))
            # A sufficient increase is kept even if the search ends before the slope condition holds.
            keep = enough.nonzero()[:, 0]
            rows = searching[keep]
            place = place.index_copy(0, rows, there[keep])
            found = found.replaced(rows, tried.select(keep))
            moved = moved.index_fill(0, rows, True)
            low[rows] = t[rows]
            short = searching[~enough]
            high[short] = t[short]
            searching = searching[~good]
            t[searching] = torch.where(
                high[searching].isinf(), 2 * low[searching], (low[searching] + high[searching]) / 2
            )
        return place, found, moved


def _inverse_hessian(g: Tensor, state: State) -> Tensor:
    """The inverse Hessian approximated by the pairs, times ``g`` [n, D]: the two-loop recursion of Nocedal 1980."""
    s, y, rho = state["s"], state["y"], state["rho"]
    q, alphas = g, []
    for i in reversed(range(s.shape[1])):
        alpha = rho[:, i] * (s[:, i] * q).sum(1)
        q = q - alpha[:, None] * y[:, i]
        alphas.append(alpha)
    q = q * state["gamma"][:, None]
    for i, alpha in enumerate(reversed(alphas)):
        beta = rho[:, i] * (y[:, i] * q).sum(1)
        q = q + (alpha - beta)[:, None] * s[:, i]
    return q


def has_pairs(state: State) -> Tensor:
    """Which rows of a state of :class:`LBFGS` have pairs, bool [n]."""
    return (state["rho"] > 0).any(1)


def _has_positive_curvature(product: Tensor, length: Tensor) -> Tensor:
    """Whether pairs with these s · y and y · y have positive curvature, beyond rounding."""
    return (product > 1e-10 * length) & (length > 0)


def _remember(state: State, s: Tensor, y: Tensor, moved: Tensor) -> State:
    """The state with the pairs of a step added; rows whose pair has no positive product keep their old pairs."""
    product, length = (s * y).sum(1), y.square().sum(1)
    good = moved & _has_positive_curvature(product, length)
    rho = torch.where(good, 1 / torch.where(good, product, 1), 0)
    gamma = torch.where(good, product / torch.where(good, length, 1), state["gamma"])
    keep = good[:, None]
    return {
        "s": torch.where(keep[..., None], torch.cat([state["s"][:, 1:], s[:, None]], 1), state["s"]),
        "y": torch.where(keep[..., None], torch.cat([state["y"][:, 1:], y[:, None]], 1), state["y"]),
        "rho": torch.where(keep, torch.cat([state["rho"][:, 1:], rho[:, None]], 1), state["rho"]),
        "gamma": gamma,
    }


def by_name(optimizer: str | Optimizer, learning_rate: float | None = None) -> Optimizer:
    """The optimiser of this name (``"ascent"``, ``"adam"``, ``"lbfgs"``), or the one given.

    Raises:
        TypeError: neither a name nor an optimiser.
        ValueError: an unknown name, or a learning rate for an optimiser that has its own.

    >>> by_name("adam", 0.1)
    Adam(learning_rate=0.1)
    """
    if isinstance(optimizer, Optimizer):
        if learning_rate is not None:
            raise ValueError(f"learning_rate should be None for an optimizer that has its own, got {learning_rate}")
        return optimizer
    kinds: dict[str, type[Ascent | Adam | LBFGS]] = {"ascent": Ascent, "adam": Adam, "lbfgs": LBFGS}
    if not isinstance(optimizer, str):
        raise TypeError(f"optimizer should be a name or an Optimizer, got {type(optimizer).__name__}")
    kind = kinds[checks.one_of(optimizer, "optimizer", kinds)]
    return kind() if learning_rate is None else kind(learning_rate=learning_rate)
