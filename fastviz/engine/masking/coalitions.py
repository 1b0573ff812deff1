"""Coalitions: images with some segments kept and the others filled, and the target's values for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz.engine.incremental.window_grid import Fill, filled_images, grid
from fastviz.engine.masking.scores import Scores
from fastviz.engine.masking.segments import numbered
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.full_precision import full_float32
from fastviz.execution.inputs import input_batch
from fastviz.targets.selection import Target

__all__ = ["Coalitions", "coalitions"]


@dataclass(frozen=True, eq=False)
class Coalitions:
    """The images of a call, divided into segments; a coalition is a set of segments that are kept.

    Attributes:
        scores: computes the target's values.
        index: int64 [N, H, W], the segment of each pixel, numbered from 0 without gaps.
        counts: number of segments of each image.
        fill: [N, C, H, W], the values that replace a segment that is left out.
    """

    scores: Scores
    index: Tensor
    counts: list[int]
    fill: Tensor

    @property
    def images(self) -> Tensor:
        """[N, C, H, W]."""
        return self.scores.images

    def values(self, number: int, rows: Tensor, advance: Callable[[int], object] = lambda pictures: None) -> Tensor:
        """Values [P], or [P, T], of image ``number`` under the coalitions ``rows``, bool [P, S]."""
        rows = rows.to(self.images.device)
        image, fill, index = self.images[number], self.fill[number], self.index[number]

        def compose(at: Tensor) -> Tensor:
            return torch.where(rows[at.to(rows.device)][:, index][:, None], image, fill)

        return self.scores.composed(compose, number, len(rows), advance)


@contextmanager
def coalitions(
    model: nn.Module, x: object, target: Target, segments: object, fill: Fill, batch_size: int | None
) -> Iterator[Coalitions]:
    """Checked images and segments; inside the context the model is in evaluation mode and gradients are off.

    Args:
        model, x, target: as the methods take them.
        segments: see :func:`fastviz.engine.masking.segments.numbered`.
        fill: see :data:`fastviz.engine.incremental.window_grid.Fill`.
        batch_size: pictures in a pass; None is :data:`fastviz.engine.masking.scores.AT_ONCE`.
    """
    images = input_batch(model, x)
    selection = targets.resolve(target, model)
    if batch_size is not None:
        checks.whole_number(batch_size, "batch_size", minimum=1)
    window = grid((images.shape[2], images.shape[3]), None, None).window
    filled = filled_images(fill, images, window)
    index, counts = numbered(segments, images)
    with frozen_model(model), torch.no_grad(), full_float32(images.device):
        yield Coalitions(Scores(model, images, selection, batch_size), index, counts, filled)
