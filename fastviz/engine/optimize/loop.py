"""The loop that makes every optimised image."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz._util.memory import images_at_once, is_out_of_memory, what_fits
from fastviz._util.progress import bar
from fastviz.engine.optimize import checkpoint as files
from fastviz.engine.optimize.canvas import Canvas, Frame
from fastviz.engine.optimize.derivatives import gradients_of, pulled_back
from fastviz.engine.optimize.host_cache import HostCache
from fastviz.engine.optimize.optimizers import Evaluation, Optimizer, per_row, within
from fastviz.engine.optimize.priors import Prior
from fastviz.engine.optimize.redirected_relu import RedirectedReLU
from fastviz.engine.optimize.state import (
    Optimized,
    RunState,
    begin,
    longer_history,
    restored,
    stop,
    to_save,
    with_best,
)
from fastviz.engine.optimize.transforms import Transform, transformed
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.fast_conv.memory_format import image_gradients

__all__ = ["ImageObjective", "Preview", "optimize"]

ImageObjective: TypeAlias = Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]
"""Maps images [n, C, H, W] and their indices in the whole batch, int64 [n] in ascending order, to values [n] to be
increased, in the graph of the images; or to (values, measures [n]), where a goal is compared with the measures."""

Preview: TypeAlias = Callable[[int, Tensor], object]
"""Called with the number of finished steps and the current images [N, C, H, W]."""

_LARGEST = 1e6
"""Parameters beyond this have diverged: pixels stay below 3, codes and Fourier coefficients below some hundreds."""


def optimize(
    model: nn.Module,
    objective: ImageObjective,
    parameters: Tensor,
    *,
    canvas: Canvas,
    frame: Frame,
    optimizer: Optimizer,
    steps: int,
    priors: Sequence[Prior] = (),
    transforms: Sequence[Transform] = (),
    goal: float | None = None,
    seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    preview: Preview | None = None,
    preview_every: int = 10,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 50,
    about: str = "",
) -> Optimized:
    """Images that increase an objective, each with its own start, objective and stopping condition.

    Every row of ``parameters`` is optimised independently: gradient, optimiser state, line search, random numbers and
    stopping never depend on the other rows. Images that have stopped are left out of later passes. If an image reached
    its goal, the version that reached it is returned. Otherwise it is the version with the highest total (objective
    minus penalties) seen, or the last one if totals are not comparable (random transforms) or incomplete (priors that
    change images).

    Meanwhile ``model`` runs in evaluation mode; it is not changed and its parameters get no gradients. Ctrl-C ends the
    loop and returns the current images. An image stops if its objective, gradient or parameters are no longer finite,
    or if its parameters exceed a million: the last good version is returned, ``reasons`` says what happened at which
    step, and a ``RuntimeWarning`` is issued.

    If the gradient of an objective is zero everywhere because all rectifiers on the path are off, as for many units at
    a grey image, the step follows the gradient at the input of the last rectifier (see
    :class:`fastviz.engine.optimize.redirected_relu.RedirectedReLU`); if that is zero too, the step is random.

    Args:
        model: the model that the objective runs; see :class:`fastviz.engine.optimize.FeatureNetwork`.
        objective: see :data:`ImageObjective`.
        parameters: [N, ...], where to start: ``canvas.parameters(images, frame)`` or ``canvas.noise(...)``.
        canvas: how parameters become images.
        frame: size and normalization of the images.
        optimizer: how parameters are updated.
        steps: the maximum number of steps; 0 returns the start with its values.
        priors: penalties and changes, applied to the untransformed images.
        transforms: random changes, in this order, before each pass.
        goal: an image stops once its measure (without transforms) is at least this.
        seeds: one per image, for the transforms; None is 0 for all. The random numbers of a step depend only on the
            seed and the step's number.
        batch_size: images in a pass; None is all on a GPU, and on a CPU as many as fit its caches.
        preview: called after every ``preview_every`` steps.
        progress: show a progress bar on a terminal.
        checkpoint: a file that is written every ``checkpoint_every`` steps and at the end. If it exists, the run
            resumes from it and gives the same numbers as an uninterrupted run; ``steps`` may be larger than before.
        about: a description that must match the checkpoint's: model, target, and whatever else the caller's objective
            depends on.

    Raises:
        TypeError, ValueError: invalid arguments; a checkpoint that is damaged or was made with other settings.
        MemoryError: the images do not fit into memory together; the message says how many would.

    >>> from fastviz.engine.optimize.canvas import Pixels, frame_of
    >>> from fastviz.engine.optimize import Ascent
    >>> model = nn.Conv2d(3, 1, 1)
    >>> made = optimize(
    ...     model, lambda images, rows: images.sum((1, 2, 3)), torch.zeros(2, 3, 4, 4), canvas=Pixels(),
    ...     frame=frame_of(model, 4), optimizer=Ascent(0.5), steps=10)
    >>> frame_of(model, 4).picture(made.images).amin().round(), made.reasons  # every pixel is white
    (tensor(1.), ('steps', 'steps'))
    """  # fmt: skip
    checks.tensor(parameters, "parameters")
    _check_numbers(steps, preview_every, checkpoint_every, batch_size, goal)
    if preview is not None and not callable(preview):
        raise TypeError(f"preview should be a function, got {type(preview).__name__}")
    checks.instances(priors, "priors", Prior)
    checks.instances(transforms, "transforms", Transform)
    if not optimizer.random_objective and transforms:
        raise ValueError(
            f"transforms should be empty for {type(optimizer).__name__}, whose line search needs an objective that "
            f"stays the same, got {list(transforms)}"
        )
    seeds = [0] * len(parameters) if seeds is None else list(seeds)
    if len(seeds) != len(parameters):
        raise ValueError(f"seeds should have one number per image, {len(parameters)}, got {len(seeds)}")
    run = _Run(model, objective, canvas, frame, optimizer, tuple(priors), tuple(transforms), goal, seeds, batch_size)
    path = None if checkpoint is None else checks.path(checkpoint, "checkpoint")
    settings = run.settings(about, parameters)
    with frozen_model(model):
        state = begin(parameters.detach().clone(), optimizer)
        saved = None if path is None else files.load(path, settings, parameters.device)
        if saved is not None:
            state = restored(saved, steps)
        state = replace(state, history=longer_history(state.history, steps))
        first = state.step
        interrupted = False
        with bar(progress, steps, done=first, text="optimising", unit="steps") as advance:
            try:
                while state.step < steps and len(state.active):
                    state = run.advance(state)
                    advance(1)
                    if preview is not None and state.step % preview_every == 0:
                        preview(state.step, run.pictures(state))
                    if path is not None and state.step % checkpoint_every == 0:
                        files.save(path, settings, to_save(state))
            except KeyboardInterrupt:
                interrupted = True
        if path is not None and state.step > first:
            files.save(path, settings, to_save(state))
        return run.conclude(state, "interrupted" if interrupted else "steps")


def _check_numbers(
    steps: int, preview_every: int, checkpoint_every: int, batch_size: int | None, goal: float | None
) -> None:
    checks.whole_number(steps, "steps", minimum=0)
    checks.whole_number(preview_every, "preview_every", minimum=1)
    checks.whole_number(checkpoint_every, "checkpoint_every", minimum=1)
    if batch_size is not None:
        checks.whole_number(batch_size, "batch_size", minimum=1)
    if goal is not None:
        checks.number(goal, "goal")


# ------------------------------------------------------------------------------------------------------ the work


@dataclass(frozen=True, eq=False)
class _Run:
    """The arguments of one call, and its steps."""

    model: nn.Module
    objective: ImageObjective
    canvas: Canvas
    frame: Frame
    optimizer: Optimizer
    priors: tuple[Prior, ...]
    transforms: tuple[Transform, ...]
    goal: float | None
    seeds: list[int]
    batch_size: int | None
    numbers: HostCache[list[int]] = field(default_factory=lambda: HostCache(Tensor.tolist))

    @cached_property
    def split(self) -> HostCache[Sequence[Tensor]]:
        """Splits rows into batches for the network; the same rows give the same tensors."""
        return HostCache(lambda rows: (rows,) if len(rows) <= self._at_once(rows) else rows.split(self._at_once(rows)))

    def settings(self, about: str, parameters: Tensor) -> str:
        """The settings that must match a checkpoint's."""
        parts = (
            *(about, list(parameters.shape), parameters.dtype, self.canvas, self.frame, self.optimizer, self.priors),
            *(self.transforms, self.goal, self.seeds),
        )
        return "; ".join(str(part) for part in parts)

    @property
    def keeps_best(self) -> bool:
        """Whether a higher total means a better image."""
        return not self.transforms and not any(prior.changes_images for prior in self.priors)

    def advance(self, state: RunState) -> RunState:
        """One step for every active image, after removing those that stop."""
        found = state.found or self.evaluate(state.parameters, state.active, state.step)
        cause = self._failures(state, found)
        state.history[state.step, state.active] = torch.where(cause > 0, torch.nan, found.values)
        # Read together, because each read of a value waits for the device.
        near = cause < 0 if self.goal is None else found.measures >= self.goal
        fails, reaches = torch.stack([(cause > 0).any(), near.any()]).tolist()
        if fails:
            state, found = self._without_failed(state, found, cause)
        state = replace(state, good=state.parameters)
        if self.keeps_best:
            state = with_best(state, found.total)
        if reaches:
            reached = self._reached(state, found)
            state, found = stop(state, reached, "goal"), found.select(~reached)
        if not len(state.active):
            return replace(state, step=state.step + 1)

        bounds = self.canvas.bounds(self.frame, state.parameters)
        moved = self.optimizer.step(
            state.parameters,
            found,
            state.optimizer,
            # for all rows pass the same tensor, whose cached values need not be read from the device again
            lambda parameters, rows: self.evaluate(
                parameters, state.active if len(rows) == len(state.active) else state.active[rows], state.step
            ),
            bounds,
        )
        parameters, there = moved.parameters, moved.found
        changing = [prior for prior in self.priors if prior.changes_images]
        if changing:
            parameters, there = self._changed(parameters, found, state, changing), None
        step = state.step + 1
        state = replace(state, step=step, parameters=parameters, optimizer=moved.state, found=there)
        if moved.stuck is not None and moved.stuck.any():
            state = stop(state, moved.stuck, "converged")
        return state

    def evaluate(self, parameters: Tensor, rows: Tensor, step: int, *, clean: bool = False) -> Evaluation:
        """The objective of the images ``rows`` at ``parameters``; with ``clean``, without transforms and gradients."""
        parts = []
        split = self.split(rows)
        for part, some in zip(parameters.split([len(some) for some in split]), split, strict=True):
            try:
                parts.append(self._evaluate(part, some, step, clean))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                parts.clear()
                raise MemoryError(self._what_fits(part, some, step, clean)) from error
        if len(parts) == 1:
            return parts[0]
        return Evaluation(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _at_once(self, rows: Tensor) -> int:
        """How many of the images ``rows`` go through the network together."""
        return self.batch_size or images_at_once(len(rows), self.frame.size, rows.device)

    def _evaluate(self, parameters: Tensor, rows: Tensor, step: int, clean: bool) -> Evaluation:
        leaf = parameters.detach().requires_grad_(not clean)
        with torch.no_grad() if clean else nullcontext():
            images = self.canvas.images(leaf, self.frame)
            held = images.detach().requires_grad_(not clean)
            values, measures, gradients = self._objective(held, rows, step, clean)
            total = values.detach()
            penalties = [prior.penalty(held, rows) for prior in self.priors]
            for penalty in penalties:
                if penalty is None:
                    continue
                total = total - penalty.detach()
                if gradients is not None:
                    gradients = gradients - gradients_of(penalty, held)
            own = self.canvas.penalty(leaf)
            total = total if own is None else total - own.detach()
        nothing = total.new_zeros(0)
        if gradients is None:
            return Evaluation(total, values, measures, nothing, nothing)
        through = gradients
        if images is not leaf:
            through = pulled_back(images, gradients, own, leaf)
        kept = gradients if any(prior.needs_gradients for prior in self.priors) else nothing
        return Evaluation(total, values.detach(), measures, through, kept)

    def _objective(self, images: Tensor, rows: Tensor, step: int, clean: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, measures, and the direction in which to change each of the ``images`` (None if ``clean``)."""
        if clean:
            return *self._measured(images, rows), None
        with image_gradients(self.model):
            values, measures = self._measured(self._transformed(images, rows, step), rows)
            gradients = gradients_of(values, images)
        dead = _largest(gradients) == 0
        if dead.any():
            where = dead.nonzero()[:, 0]
            gradients = gradients.index_copy(
                0, where, self._redirected_directions(images.detach()[where], rows[where], step)
            )
        return values, measures, gradients

    def _redirected_directions(self, images: Tensor, rows: Tensor, step: int) -> Tensor:
        """Directions for ``images`` whose gradient is zero everywhere: redirected gradients, or noise."""
        images = images.requires_grad_()
        with RedirectedReLU():
            values, _ = self._measured(self._transformed(images, rows, step), rows)
            found = gradients_of(values, images)
        dead = _largest(found) == 0
        if not dead.any():
            return found
        noise = [
            torch.empty(images.shape[1:], dtype=torch.float64).normal_(generator=_generator(self.seeds[row], step))
            for row in rows.tolist()
        ]
        return torch.where(per_row(dead, found), torch.stack(noise).to(found), found)

    def _measured(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values and measures of the objective."""
        result = self.objective(images, rows)
        return result if isinstance(result, tuple) else (result, result.detach())

    def _transformed(self, images: Tensor, rows: Tensor, step: int) -> Tensor:
        if not self.transforms:
            return images
        return transformed(images, self.transforms, [_generator(self.seeds[row], step) for row in self.numbers(rows)])

    def _what_fits(self, parameters: Tensor, rows: Tensor, step: int, clean: bool) -> str:
        shape = (len(parameters), len(self.frame.mean), *self.frame.size)
        return what_fits(
            lambda count: self._evaluate(parameters[:count], rows[:count], step, clean),
            parameters.new_empty(()).expand(shape),
        )

    def _failures(self, state: RunState, found: Evaluation) -> Tensor:
        """Why rows cannot continue, int64 [n]: an index into :data:`_CAUSES`, 0 if they can."""
        cause = (~(_largest(state.parameters) <= _LARGEST)).long() * 3
        cause = torch.where(_largest(found.gradients).isfinite(), cause, 2)
        return torch.where(found.total.isfinite(), cause, 1)

    def _without_failed(self, state: RunState, found: Evaluation, cause: Tensor) -> tuple[RunState, Evaluation]:
        failed = cause > 0
        good = state.parameters.clone()
        good[failed] = state.best[state.active[failed]] if self.keeps_best else state.good[failed]
        totals = found.total.tolist()
        words = [_CAUSES[int(number)].format(total=totals[row], step=state.step) for row, number in enumerate(cause)]
        for row in failed.nonzero()[:, 0].tolist():
            warnings.warn(
                f"image {int(state.active[row])} stopped, the last good one is returned: {words[row]}",
                RuntimeWarning,
                stacklevel=4,
            )
        return stop(replace(state, parameters=good), failed, words), found.select(~failed)

    def _reached(self, state: RunState, found: Evaluation) -> Tensor:
        """Which rows have reached the goal; with transforms, only rows that also reach it without them."""
        assert self.goal is not None
        reached = found.measures >= self.goal
        if self.transforms and reached.any():
            rows = reached.nonzero()[:, 0]
            clean = self.evaluate(state.parameters[rows], state.active[rows], state.step, clean=True)
            reached = reached.index_copy(0, rows, clean.measures >= self.goal)
        return reached

    def _changed(self, parameters: Tensor, found: Evaluation, state: RunState, priors: list[Prior]) -> Tensor:
        """The parameters after the ``priors`` have changed their images."""
        with torch.no_grad():
            images = before = self.canvas.images(parameters, self.frame)
            for prior in priors:
                gradients = found.image_gradients if prior.needs_gradients else None
                images = prior.changed(images, gradients, state.active, state.step + 1)
            if images is before:
                return parameters
            changed = self.canvas.parameters(images, self.frame)
            bounds = self.canvas.bounds(self.frame, changed)
            return within(changed, bounds)

    def pictures(self, state: RunState) -> Tensor:
        """The current images [N, C, H, W]; stopped ones as they were when they stopped."""
        with torch.no_grad():
            whole = state.final.index_copy(0, state.active, state.parameters)
            return self.canvas.images(whole, self.frame).clone()

    def conclude(self, state: RunState, reason: str) -> Optimized:
        """The result; images that are still active stop for ``reason``."""
        if len(state.active):
            state = self._stop_all(state, reason)
        everyone = torch.arange(len(state.final), device=state.final.device)
        with torch.no_grad():
            images = self.canvas.images(state.final, self.frame).clone()
        if len(everyone):
            found = self.evaluate(state.final, everyone, state.step, clean=True)
        else:
            found = Evaluation(*(state.best_totals,) * 5)
        return Optimized(
            state.final, images, found.values, found.measures, found.total, state.steps,
            state.history[: state.step], state.reasons,
        )  # fmt: skip

    def _stop_all(self, state: RunState, reason: str) -> RunState:
        """``state`` after all images have stopped, each with its best or its last good parameters."""
        found = state.found or self.evaluate(state.parameters, state.active, state.step, clean=True)
        fine = found.total.isfinite() & (_largest(state.parameters) <= _LARGEST)
        parameters = torch.where(per_row(fine, state.good), state.parameters, state.good)
        state = replace(state, parameters=parameters)
        reached = torch.zeros_like(fine) if self.goal is None else fine & (found.measures >= self.goal)
        if self.keeps_best:
            state = with_best(state, torch.where(fine, found.total, -torch.inf))
            best = torch.where(per_row(reached, state.good), state.parameters, state.best[state.active])
            state = replace(state, parameters=best)
        words = ["goal" if there else reason for there in reached.tolist()]
        return stop(state, torch.ones_like(fine), words)


_CAUSES = (
    "",
    "the objective became {total} at step {step}",
    "the gradient was no longer finite at step {step}",
    f"the parameters grew beyond {_LARGEST:g} at step {{step}}",
)


def _largest(values: Tensor) -> Tensor:
    """The largest absolute value of each row, [n]; NaN if the row has one."""
    return values.flatten(1).abs().amax(1)  # seven times as fast as the norm of infinite order


def _generator(seed: int, step: int) -> torch.Generator:
    """A random generator that depends only on an image's seed and the step, so that a run can resume at any step."""
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
