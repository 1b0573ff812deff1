"""Images optimised from coarse to fine, so that large shapes form before details."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fastviz._util import checks
from fastviz._util.progress import bar
from fastviz.engine.optimize.canvas import Fourier, Frame, start_parameters
from fastviz.engine.optimize.loop import optimize
from fastviz.engine.optimize.options import Optimization
from fastviz.engine.optimize.priors import natural_image
from fastviz.engine.optimize.style_loss import StyleLoss
from fastviz.images import tensors

__all__ = ["Size", "StyledPictures", "optimize_in_levels", "shrunk"]

Size: TypeAlias = tuple[int, int]

_WAVES = Fourier(decay=0.5)
"""Chosen by eye: with the default decay of 1, large shapes of the content drift."""


@dataclass(frozen=True, eq=False)
class StyledPictures:
    """The result of :func:`optimize_in_levels`, one row per image.

    Attributes:
        pictures: [N, C, H, W] in 0 to 1, at full size.
        loss: the loss object of the last level, with the losses of its images.
        history: [S, N], the total loss before each step, the coarsest level first; NaN after an image has stopped.
        steps: int64 [N], steps of each image over all levels.
        reasons: why each image stopped in the last level.
        interrupted: whether Ctrl-C ended it early.
    """

    pictures: Tensor
    loss: StyleLoss
    history: Tensor
    steps: Tensor
    reasons: tuple[str, ...]
    interrupted: bool


def optimize_in_levels(
    model: nn.Module,
    losses: Callable[[Size, float], StyleLoss],
    frame: Frame,
    options: Optimization,
    *,
    levels: int,
    smallest: int,
    steps: int,
    variation_weight: float,
    seeds: Sequence[int],
    batch_size: int | None,
    progress: bool,
) -> StyledPictures:
    """Images of the size of ``frame``, one per seed, that minimise the losses, optimised from coarse to fine.

    Args:
        model: the model that the losses run.
        losses: makes the loss for a level; called with its size in pixels and that size as a fraction of the full size.
        frame: size and normalisation of the images.
        options: with everything set but perhaps the preview; a checkpoint is refused.
        levels: how many sizes, each half of the next.
        smallest: levels whose shorter side is below this, in pixels, are left out.
        steps: the maximum number of steps at each level.
        variation_weight: weight of the total variation, see :func:`fastviz.engine.optimize.priors.natural_image`.
        seeds, batch_size, progress: see :func:`fastviz.engine.optimize.optimize`.
    """
    checks.whole_number(levels, "levels", minimum=1)
    checks.whole_number(steps, "steps", minimum=0)
    checks.number(variation_weight, "variation_weight", low=0)
    _check(options, frame)
    canvas = _WAVES if options.canvas == "fourier" else options.chosen_canvas()
    start = options.start
    parts = [0.5**k for k in range(levels) if k == 0 or min(frame.size) * 0.5**k >= smallest][::-1]
    history: list[Tensor] = []
    counts: list[Tensor] = []
    with bar(progress, steps * len(parts), text="styling", unit="steps") as advance:

        def after(step: int, images: Tensor) -> None:
            advance(1)
            if options.preview is not None and step % options.preview_every == 0:
                options.preview(step, images)

        for part in parts:
            size = _scaled_size(frame.size, part)
            small = Frame(size, frame.mean, frame.std)
            if isinstance(start, Tensor):
                start = frame.image(tensors.resize(frame.picture(start), *size, "bicubic"))
            loss = losses(size, part)
            made = optimize(
                model,
                loss,
                start_parameters(model, start, canvas, small, seeds),
                canvas=canvas,
                frame=small,
                optimizer=options.chosen_optimizer(),
                steps=steps,
                priors=natural_image(small, 0, variation_weight),
                seeds=seeds,
                batch_size=batch_size,
                preview=after if progress or options.preview is not None else None,
                preview_every=1,
            )
            start = made.images
            history.append(-made.history)
            counts.append(made.steps)
            if made.interrupted:
                break
    shown = tensors.resize(frame.picture(made.images), *frame.size, "bicubic").clamp(0, 1)
    return StyledPictures(
        shown, loss, torch.cat(history), torch.stack(counts).sum(0), made.reasons, made.interrupted
    )  # fmt: skip


def _check(options: Optimization, frame: Frame) -> None:
    if options.checkpoint is not None:
        raise ValueError(
            f"checkpoint should be None for pictures that are optimised in levels, got {options.checkpoint!r}"
        )
    start, shape = options.start, (len(frame.mean), *frame.size)
    if isinstance(start, Tensor) and tuple(start.shape[1:]) != shape:
        raise ValueError(f"start should have shape [N, {', '.join(map(str, shape))}], got {list(start.shape)}")


def shrunk(shown: Tensor, part: float) -> Tensor:
    """Pictures [N, C, H, W] in 0 to 1, scaled by the factor ``part``."""
    return tensors.resize(shown, *_scaled_size(shown.shape[2:], part), "bicubic")


def _scaled_size(size: Sequence[int], part: float) -> Size:
    height, width = (max(1, round(side * part)) for side in size)
    return height, width
