"""Images that change step by step, and updates of the network's maps.

A sweep's window leaves the clean maps unchanged. Here the changed rectangle of each map is written into it, so that the
next change starts from the maps of the current image. The rectangles are computed from the current pixels, layer by
layer, and not added to earlier values, so no rounding error accumulates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastviz.engine.incremental.convolution import in_best_order
from fastviz.engine.incremental.execute import Batch, Clean, Runner, cut_out, planes, run_whole
from fastviz.engine.incremental.steps import Size, Step

__all__ = ["AdvancingRunner", "Changes", "States", "paste", "start"]


@dataclass(frozen=True, eq=False)
class Changes:
    """Q sequences of S changes, each of which turns an image into a substitute or back, a set of pixels at a time.

    Attributes:
        step: integers [Q, H, W], the change in which a pixel is replaced, starting from 1; 0 is before the first, and a
            number above ``steps`` is never.
        steps: S.
        substitute: the replacement values, [N or 1, C, H, W].
        image: int64 [Q], the image of each sequence; None is one sequence per image.
        reveal: start with the substitute and replace it by the image's pixels.
    """

    step: Tensor
    steps: int
    substitute: Tensor
    image: Tensor | None = None
    reveal: bool = False

    def boxes(self) -> Tensor:
        """The bounding rectangle of each change, int64 [Q, S, 4]: top, left, bottom, right; zeros where it is empty."""
        Q, H, W = self.step.shape
        number = self.step.long().clamp(0, self.steps + 1).flatten(1)
        rows = torch.arange(H, device=number.device)[:, None].expand(H, W)
        columns = torch.arange(W, device=number.device).expand(H, W)
        sides = []
        for places, size in ((rows, H), (columns, W)):
            at = places.reshape(1, -1).expand(Q, -1)
            first = at.new_full((Q, self.steps + 2), size).scatter_reduce_(1, number, at, "amin")
            last = at.new_full((Q, self.steps + 2), -1).scatter_reduce_(1, number, at, "amax")
            sides.append((first, last + 1))
        boxes = torch.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], 2)[:, 1:-1]
        return boxes.masked_fill((boxes[..., 2] <= boxes[..., 0])[..., None], 0)


class States:
    """The images after each change: state s of sequence q, counted from 0, has the number q · (S + 1) + s.

    Args:
        images: [N, C, H, W].
        changes: the changes of the images.
        first: the sequence of the first maps.
    """

    def __init__(self, images: Tensor, changes: Changes, first: int = 0) -> None:
        self.count = changes.steps + 1
        self._images = in_best_order(images)
        self._others = in_best_order(changes.substitute)
        self._when = in_best_order(changes.step[:, None].float())
        self._reveal = changes.reveal
        every = torch.arange(len(images), device=images.device)
        self._about = every if changes.image is None else changes.image
        self.image = torch.arange(len(changes.step), device=images.device).repeat_interleave(self.count) - first

    def images(self, windows: Tensor) -> Tensor:
        """Whole images [B, C, H, W] for the states with these numbers."""
        sequence, about, other = self._places(windows)
        replaced = self._replaced(self._when[sequence], windows)
        return torch.where(replaced, self._others[other], self._images[about])

    def rectangles(self, windows: Tensor, origin: Tensor, size: Size) -> Tensor:
        """Their rectangles [B, C, *size] that start at ``origin`` [B, 2]."""
        sequence, about, other = self._places(windows)
        replaced = self._replaced(cut_out(self._when, origin, size, sequence), windows)
        others = cut_out(self._others, origin, size, other)
        return torch.where(replaced, others, cut_out(self._images, origin, size, about))

    def _places(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each state its sequence, the image that this is about, and what that becomes."""
        sequence = windows // self.count
        about = self._about[sequence]
        return sequence, about, about if len(self._others) > 1 else torch.zeros_like(about)

    def _replaced(self, when: Tensor, windows: Tensor) -> Tensor:
        return (when <= (windows % self.count)[:, None, None, None]) != self._reveal


class AdvancingRunner(Runner):
    """Runs a schedule and writes the changed rectangles into the maps that later windows are cut from."""

    def _keep(self, batch: Batch, step: Step) -> None:
        maps = batch.clean.maps.get(step)
        if maps is None:
            return
        value = planes(batch.values[step], step)
        if step in self.schedule.window_inputs:
            paste(maps, value, batch.origins[self.slots[step, -1]], batch.image)
        else:
            maps[batch.image] = value

    def _mean(self, batch: Batch, step: Step) -> Tensor:
        # recomputed from the whole map: running sums would accumulate rounding errors
        return step.full([self._whole(batch, step.sources[0])])


def paste(maps: Tensor, value: Tensor, origin: Tensor, image: Tensor) -> None:
    """Write rectangles into maps, in place.

    Args:
        maps: [N, C, H, W].
        value: [B, C, h, w].
        origin: int64 [B, 2], row and column where each starts; all rectangles lie inside the maps.
        image: int64 [B], the map of each; all different.
    """
    h, w = value.shape[2:]
    if not maps.is_cuda:  # few copies of whole rows, where a copy by index goes from pixel to pixel
        for each, at, (row, column) in zip(value, image.tolist(), origin.tolist(), strict=True):
            maps[at, :, row : row + h, column : column + w] = each
        return
    rows = origin[:, :1] + torch.arange(h, device=maps.device)
    columns = origin[:, 1:] + torch.arange(w, device=maps.device)
    pixels = maps.permute(0, 2, 3, 1)
    pixels[image[:, None, None], rows[:, :, None], columns[:, None, :]] = value.permute(0, 2, 3, 1)


def start(steps: Sequence[Step], states: States, numbers: Tensor, keep: Iterable[Step], at_once: int) -> Clean:
    """The maps of the states of these numbers, which belong to sequences in turn, ready to be written into."""
    wanted = set(keep)
    maps: dict[Step, Tensor] = {}
    outputs = []
    for first in range(0, len(numbers), at_once):
        part = numbers[first : first + at_once]
        images = in_best_order(states.images(part))
        output, kept = run_whole(steps, {steps[0]: images}, wanted, clean=True)
        outputs.append(output)
        for step, value in kept.items():
            plane = planes(value, step)
            if step not in maps:
                maps[step] = in_best_order(plane.new_empty(len(numbers), *plane.shape[1:]))
            maps[step][first : first + at_once] = plane
    return Clean(states.images(numbers[:0]), torch.cat(outputs), maps, {})
