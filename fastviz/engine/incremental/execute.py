"""Runs steps: once on the clean images, then on batches of covered windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastviz import ops
from fastviz.engine.incremental.convolution import in_best_order
from fastviz.engine.incremental.plan import Group, Schedule, window_size
from fastviz.engine.incremental.steps import Constant, Input, Mean, PadOrSlice, Size, Step
from fastviz.ops.splice import spliced

__all__ = [
    "Batch",
    "Clean",
    "Covered",
    "Runner",
    "Windows",
    "clean_bytes",
    "clean_pass",
    "cut_out",
    "kept_maps",
    "planes",
    "run_whole",
]


@dataclass(frozen=True)
class Clean:
    """Results for the unchanged images.

    Attributes:
        images: [N, C, H, W]; signals [N, C, L] and volumes [N, C, D, H, W] alike, here and below.
        output: the network's output.
        maps: [N, K, rows, columns], the maps that windows are cut from.
        integrals: for means, sums of a map over all rows above and columns left of a corner: float64 [N, R+1, C+1, K].
    """

    images: Tensor
    output: Tensor
    maps: dict[Step, Tensor]
    integrals: dict[Step, Tensor]

    @property
    def is_finite(self) -> bool:
        """Whether all values are finite. Kernels with a fused rectifier turn NaN into 0, and means subtract values, so
        all values must be finite."""
        maps = [_without_border(value, step) for step, value in self.maps.items()]
        sums = [value.sum(dtype=torch.float64) for value in (self.images, self.output, *maps)]
        return bool(torch.isfinite(torch.stack(sums)).all())


def _without_border(value: Tensor, step: Step) -> Tensor:
    """A map without its border of infinite padding, which max pooling needs."""
    if not isinstance(step, PadOrSlice) or math.isfinite(step.pad_value):
        return value
    for dim, slide in zip(range(-len(step.window), 0), step.window, strict=True):
        before, after = max(0, slide.before), max(0, slide.after)
        value = value.narrow(dim, before, value.shape[dim] - before - after)
    return value


def run_whole(
    steps: Sequence[Step], values: dict[Step, Tensor], keep: Iterable[Step] = (), *, clean: bool = False
) -> tuple[Tensor, dict[Step, Tensor]]:
    """The output of the last step on whole inputs, and the outputs of the steps in ``keep``.

    Args:
        steps: the steps to run, in order.
        values: the outputs of other steps that they read, or of the first of them.
        keep: steps whose outputs to return.
        clean: see :meth:`fastviz.engine.incremental.steps.Step.full`.
    """
    wanted = set(keep)
    last_reader = {source: at for at, step in enumerate(steps) for source in step.sources}
    held = dict(values)
    kept: dict[Step, Tensor] = {}
    for at, step in enumerate(steps):
        if isinstance(step, Constant):
            held[step] = step.value
        elif step not in held:
            held[step] = step.full([held[source] for source in step.sources], clean=clean)
        if step in wanted:
            kept[step] = held[step]
        for source in step.sources:
            if last_reader[source] == at:
                held.pop(source, None)
    return held[steps[-1]], kept


def clean_pass(steps: Sequence[Step], images: Tensor, groups: Iterable[Group]) -> Clean:
    """Run the clean images and keep every map that the groups cut windows from."""
    keep = kept_maps(steps, groups)
    values = {steps[0]: in_best_order(images)}
    output, kept = run_whole(steps, values, keep, clean=True)
    maps = {step: _in_order(value, step) for step, value in kept.items()}
    averaged = _averaged(steps) & keep
    return Clean(images, output, maps, {step: _integral(maps[step]) for step in averaged})


def _averaged(steps: Sequence[Step]) -> set[Step]:
    """The steps whose maps are averaged by a later step."""
    return {step.sources[0] for step in steps if isinstance(step, Mean)}


def _integral(maps: Tensor) -> Tensor:
    sums, axes = maps.movedim(1, -1).double(), maps.dim() - 2
    for dim in range(1, axes + 1):
        sums = sums.cumsum(dim)
    return torch.nn.functional.pad(sums, [0, 0, *[1, 0] * axes])


def clean_bytes(steps: Sequence[Step], groups: Iterable[Group], value_bytes: int) -> float:
    """The bytes of the clean maps of one image."""
    keep = kept_maps(steps, groups)
    averaged = _averaged(steps) & keep
    return sum(math.prod(step.shape) * (value_bytes + (8 if step in averaged else 0)) for step in keep)


def kept_maps(steps: Sequence[Step], groups: Iterable[Group]) -> set[Step]:
    """The steps whose clean maps the groups cut windows from."""
    return {source for group in groups for source in _sources_cut(steps, group.schedule)}


def _sources_cut(steps: Sequence[Step], schedule: Schedule) -> set[Step]:
    """The steps whose clean maps a schedule reads."""
    cut = set()
    for step in steps:
        window_inputs = schedule.window_inputs.get(step)
        for at, source in enumerate(step.sources):
            if (window_inputs is None and source in schedule.window_inputs) or (
                window_inputs is not None and window_inputs[at] == "splice"
            ):
                cut.add(source)
    if steps[-1] in schedule.window_inputs:
        cut.add(steps[-1])
    return {step for step in cut if not isinstance(step, Constant)}


def _in_order(value: Tensor, step: Step) -> Tensor:
    """A map with its axes last, all other dimensions as channels in one, in the fastest memory order."""
    return in_best_order(planes(value, step))


def planes(value: Tensor, step: Step) -> Tensor:
    """[B, ..., rows, ..., columns, ...] as [B, channels, rows, columns]."""
    assert step.layout is not None
    axes = len(step.layout)
    if step.layout == tuple(range(2, value.dim())):  # as most maps are, and small sweeps come here for every step
        return value
    moved = value.movedim(step.layout, tuple(range(-axes, 0)))
    return moved if moved.dim() == axes + 2 else moved.reshape(len(moved), -1, *moved.shape[-axes:])


def unplanes(value: Tensor, step: Step) -> Tensor:
    """The inverse of :func:`planes`."""
    assert step.layout is not None
    if step.layout == tuple(range(2, value.dim())) and len(step.shape) == value.dim() - 1:
        return value
    others = [size for dim, size in enumerate(step.shape, start=1) if dim not in step.layout]
    axes = len(step.layout)
    moved = value if len(others) == 1 else value.reshape(len(value), *others, *value.shape[-axes:])
    return moved.movedim(tuple(range(-axes, 0)), step.layout)


class Windows(Protocol):
    """Images that differ in one window from the images of the clean maps."""

    @property
    def image(self) -> Tensor:
        """Int64 [P], the image of each window: where its clean maps are."""

    def images(self, windows: Tensor) -> Tensor:
        """Whole images [B, C, H, W] for the ``windows`` with these numbers."""

    def rectangles(self, windows: Tensor, origin: Tensor, size: Size) -> Tensor:
        """Their rectangles [B, C, *size] that start at ``origin`` [B, 2]."""


@dataclass(frozen=True)
class Covered:
    """Images with one window covered in each.

    Attributes:
        clean: the images [N, C, H, W].
        boxes: int64 [P, 4], top, left, bottom, right, inside the image: starts along each axis, then stops.
        image: int64 [P], the image of each window.
        fill: the replacement values: a number, [C] or [1 or N, C, H, W].
    """

    clean: Tensor
    boxes: Tensor
    image: Tensor
    fill: float | Tensor

    def images(self, windows: Tensor) -> Tensor:
        """Whole images [B, C, H, W] for the ``windows`` with these numbers."""
        return in_best_order(ops.occlude(self.clean, self.boxes[windows], self.image[windows], self.fill))

    def rectangles(self, windows: Tensor, origin: Tensor, size: Size) -> Tensor:
        """Their rectangles [B, C, *size] that start at ``origin`` [B, axes]."""
        image = self.image[windows]
        part = cut_out(self.clean, origin, size, image)
        fill = self.fill
        if isinstance(fill, Tensor) and fill.dim() > 1:
            fill = cut_out(fill, origin, size, image if len(fill) > 1 else torch.zeros_like(image))
        boxes = self.boxes[windows] - origin.repeat(1, 2)
        number = torch.arange(len(windows), device=part.device)
        return ops.occlude(part, boxes, number, fill)


class Runner:
    """Runs one schedule over batches of its windows."""

    def __init__(self, steps: Sequence[Step], schedule: Schedule, device: torch.device) -> None:
        self.steps = steps
        self.schedule = schedule
        self.last_reader = {source: at for at, step in enumerate(steps) for source in step.sources}
        # every position at which a window or rectangle starts, along each axis: for each member of the band
        self.slots: dict[tuple[Step, int], int] = {}
        places: list[list[list[int]]] = [[] for _ in schedule.bands]
        for step, window_inputs in schedule.window_inputs.items():
            self._slot(step, -1, [band.start[step] for band in schedule.bands], places)
            for at, window_input in enumerate(window_inputs):
                if window_input == "splice":
                    assert step.slides is not None
                    begins = [
                        [start * slide.stride - slide.before for start in band.start[step]]
                        for slide, band in zip(step.slides[at], schedule.bands, strict=True)
                    ]
                    self._slot(step, at, begins, places)
        # [places, members] each; without places if all steps work on whole maps
        self.places = [
            torch.tensor(each, dtype=torch.int64, device=device).reshape(-1, len(band.members))
            for each, band in zip(places, schedule.bands, strict=True)
        ]

    def _slot(self, step: Step, at: int, begins: list[list[int]], places: list[list[list[int]]]) -> None:
        self.slots[step, at] = len(places[0])
        for each, begin in zip(places, begins, strict=True):
            each.append(begin)

    def run(self, clean: Clean, covered: Windows, windows: Tensor, members: Tensor) -> Tensor:
        """The network's output for a batch of windows, [B, ...].

        Args:
            clean: the results for the unchanged images.
            covered: the images with their windows covered.
            windows: the numbers of the windows, int64 [B].
            members: for each its members of the bands, int64 [B, axes].
        """
        steps, schedule = self.steps, self.schedule
        chosen = zip(self.places, members.unbind(1), strict=True)
        origins = torch.stack([places[:, member] for places, member in chosen], dim=-1)  # [places, windows, axes]
        batch = Batch(clean, origins, covered.image[windows], {}, {})
        for at, step in enumerate(steps):
            if isinstance(step, Input):
                batch.values[step] = (
                    covered.rectangles(windows, origins[self.slots[step, -1]], schedule.size[step])
                    if step in schedule.window_inputs
                    else covered.images(windows)
                )
            elif isinstance(step, Constant):
                batch.values[step] = step.value
            elif step in schedule.window_inputs:
                inputs = [self._window(batch, step, number) for number in range(len(step.sources))]
                batch.values[step] = step.part(inputs, schedule.size[step])
            elif isinstance(step, Mean) and step.sources[0] in schedule.window_inputs:
                batch.values[step] = self._mean(batch, step)
            else:
                batch.values[step] = step.full([self._whole(batch, source) for source in step.sources])
            self._keep(batch, step)
            for source in step.sources:
                if self.last_reader[source] == at:
                    batch.values.pop(source, None)
                    batch.pasted.pop(source, None)
        return self._whole(batch, steps[-1])

    def _keep(self, batch: Batch, step: Step) -> None:
        """Called with each step's value; a sweep leaves the clean maps unchanged."""

    def _window(self, batch: Batch, step: Step, at: int) -> Tensor:
        """The window of a source that the step's rectangle reads."""
        source = step.sources[at]
        if self.schedule.window_inputs[step][at] == "direct":
            return batch.values[source]
        origin = batch.origins[self.slots[step, at]]
        size = window_size(step, at, self.schedule.size[step])
        return self._splice(batch, source, origin, size, step.pad_value if at == 0 else 0.0)

    def _whole(self, batch: Batch, source: Step) -> Tensor:
        """A whole source: its value, or its rectangle pasted into the clean map."""
        if source not in self.schedule.window_inputs or isinstance(source, Constant):
            return batch.values[source]
        if source not in batch.pasted:
            origin = torch.zeros_like(batch.origins[0])
            batch.pasted[source] = self._splice(batch, source, origin, source.size, 0.0)
        return batch.pasted[source]

    def _splice(self, batch: Batch, source: Step, origin: Tensor, size: Size, pad_value: float) -> Tensor:
        if isinstance(source, Constant):
            return cut_out(source.value, origin, size, torch.zeros_like(batch.image), pad_value)
        dirty = planes(batch.values[source], source)
        at = batch.origins[self.slots[source, -1]]
        window = _copied(batch.clean.maps[source], dirty, at, origin, size, batch.image, pad_value)
        return unplanes(window, source)

    def _mean(self, batch: Batch, step: Step) -> Tensor:
        """The clean mean, plus the rectangle's new values minus its old ones."""
        source, values = step.sources[0], batch.values[step.sources[0]]
        starts = batch.origins[self.slots[source, -1]].unbind(1)
        sides = [(start + extent, start) for start, extent in zip(starts, self.schedule.size[source], strict=True)]
        integral, image = batch.clean.integrals[source], batch.image
        # the sum inside the rectangle from those up to its corners, with a minus for each start among their sides
        before: Tensor | float = 0.0
        for corner in itertools.product((0, 1), repeat=len(sides)):
            upto = integral[(image, *(side[at] for side, at in zip(sides, corner, strict=True)))]
            before = before - upto if sum(corner) % 2 else before + upto
        dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
        whole = integral.flatten(1, -2)[image, -1]
        total = whole - before + values.sum(tuple(range(2, values.dim())), dtype=dtype)
        mean = (total / math.prod(source.size)).to(values.dtype)
        return step.finish(mean.reshape(-1, *step.shape))


@dataclass(frozen=True)
class Batch:
    """The state of one batch in the network."""

    clean: Clean
    origins: Tensor
    image: Tensor
    values: dict[Step, Tensor]
    pasted: dict[Step, Tensor]


def cut_out(maps: Tensor, origin: Tensor, size: Size, image: Tensor, pad_value: float = 0.0) -> Tensor:
    """Windows [B, C, *size] of ``maps`` [N, C, H, W], unchanged."""
    nothing = maps.new_empty(len(origin), maps.shape[1], *[0] * len(size))
    return _copied(maps, nothing, origin, origin, size, image, pad_value)


def _copied(
    maps: Tensor, dirty: Tensor, at: Tensor, origin: Tensor, size: Size, image: Tensor, pad_value: float
) -> Tensor:
    """:func:`fastviz.ops.splice`, also for integers and bools."""
    if dirty.is_floating_point():
        return spliced(maps, dirty, at, origin, size, image, pad_value)
    return spliced(maps.double(), dirty.double(), at, origin, size, image, pad_value).to(dirty.dtype)
