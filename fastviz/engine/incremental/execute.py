"""Runs steps: once over the clean images, then over batches of covered windows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastviz import ops
from fastviz.engine.incremental.plan import Group, Schedule, window_size
from fastviz.engine.incremental.steps import Constant, Cut, Input, Mean, Size, Step, memory_order

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
    """What the images as they are give.

    Attributes:
        images: [N, C, H, W].
        output: the network's.
        maps: [N, K, rows, columns], those that windows are cut from.
        integrals: for means, sums of a map over all rows above and columns left of a corner: float64 [N, R+1, C+1, K].
    """

    images: Tensor
    output: Tensor
    maps: dict[Step, Tensor]
    integrals: dict[Step, Tensor]

    @property
    def is_finite(self) -> bool:
        """Whether all of it is: kernels with a rectifier inside give 0 for what is not a number, and means subtract."""
        maps = [_without_border(value, step) for step, value in self.maps.items()]
        sums = [value.sum(dtype=torch.float64) for value in (self.images, self.output, *maps)]
        return bool(torch.isfinite(torch.stack(sums)).all())


def _without_border(value: Tensor, step: Step) -> Tensor:
    """A map that was padded with an infinite number, as a maximum wants it, without that border."""
    if not isinstance(step, Cut) or math.isfinite(step.pad_value):
        return value
    for dim, slide in zip((-2, -1), step.window, strict=True):
        before, after = max(0, slide.before), max(0, slide.after)
        value = value.narrow(dim, before, value.shape[dim] - before - after)
    return value


def run_whole(
    steps: Sequence[Step], values: dict[Step, Tensor], keep: Iterable[Step] = (), *, clean: bool = False
) -> tuple[Tensor, dict[Step, Tensor]]:
    """The output of the last step on whole inputs, and the outputs of the steps in ``keep``.

    Args:
        steps: those to run, in order.
        values: the outputs of the steps that they read and that are not among them, or of the first of them.
        keep: steps whose outputs are wanted.
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
    values = {steps[0]: images.contiguous(memory_format=memory_order(images))}
    output, kept = run_whole(steps, values, keep, clean=True)
    maps = {step: _in_order(value, step) for step, value in kept.items()}
    averaged = {step.sources[0] for step in steps if isinstance(step, Mean)} & keep
    return Clean(images, output, maps, {step: _integral(maps[step]) for step in averaged})


def _integral(maps: Tensor) -> Tensor:
    pixels = maps.permute(0, 2, 3, 1).double()
    return torch.nn.functional.pad(pixels.cumsum(1).cumsum(2), [0, 0, 1, 0, 1, 0])


def clean_bytes(steps: Sequence[Step], groups: Iterable[Group], value_bytes: int) -> float:
    """Bytes that the clean maps of one image hold."""
    keep = kept_maps(steps, groups)
    averaged = {step.sources[0] for step in steps if isinstance(step, Mean)} & keep
    return sum(math.prod(step.shape) * (value_bytes + (8 if step in averaged else 0)) for step in keep)


def kept_maps(steps: Sequence[Step], groups: Iterable[Group]) -> set[Step]:
    """The steps whose clean maps the groups cut windows from."""
    return {source for group in groups for source in _sources_cut(steps, group.schedule)}


def _sources_cut(steps: Sequence[Step], schedule: Schedule) -> set[Step]:
    """The steps whose clean maps a schedule reads."""
    cut = set()
    for step in steps:
        ways = schedule.ways.get(step)
        for at, source in enumerate(step.sources):
            if (ways is None and source in schedule.ways) or (ways is not None and ways[at] == "splice"):
                cut.add(source)
    if steps[-1] in schedule.ways:
        cut.add(steps[-1])
    return {step for step in cut if not isinstance(step, Constant)}


def _in_order(value: Tensor, step: Step) -> Tensor:
    """A map with rows and columns last, its channels (whatever they are) in one dimension, in the best order."""
    return planes(value, step).contiguous(memory_format=memory_order(value))


def planes(value: Tensor, step: Step) -> Tensor:
    """[B, ..., rows, ..., columns, ...] as [B, channels, rows, columns]."""
    assert step.layout is not None
    moved = value.movedim(step.layout, (-2, -1))
    return moved if moved.dim() == 4 else moved.reshape(len(moved), -1, *moved.shape[-2:])


def unplanes(value: Tensor, step: Step) -> Tensor:
    """The opposite of :func:`_planes`."""
    assert step.layout is not None
    others = [size for dim, size in enumerate(step.shape, start=1) if dim not in step.layout]
    moved = value if len(others) == 1 else value.reshape(len(value), *others, *value.shape[-2:])
    return moved.movedim((-2, -1), step.layout)


class Windows(Protocol):
    """Images of which a window is not as it was when the clean maps were made."""

    @property
    def image(self) -> Tensor:
        """Int64 [P], the image of each window: where its clean maps are."""

    def images(self, windows: Tensor) -> Tensor:
        """Whole images [B, C, H, W] for the ``windows`` of this number."""

    def rectangles(self, windows: Tensor, origin: Tensor, size: Size) -> Tensor:
        """The rectangles [B, C, *size] of them that begin at ``origin`` [B, 2]."""


@dataclass(frozen=True)
class Covered:
    """Images with a window of each covered.

    Attributes:
        clean: the images [N, C, H, W].
        boxes: int64 [P, 4], top, left, bottom, right, inside the image.
        image: int64 [P], the image of each window.
        fill: what covers: a number, [C] or [1 or N, C, H, W].
    """

    clean: Tensor
    boxes: Tensor
    image: Tensor
    fill: float | Tensor

    def images(self, windows: Tensor) -> Tensor:
        """Whole images [B, C, H, W] for the ``windows`` of this number."""
        whole = ops.occlude(self.clean, self.boxes[windows], self.image[windows], self.fill)
        return whole.contiguous(memory_format=memory_order(whole))

    def rectangles(self, windows: Tensor, origin: Tensor, size: Size) -> Tensor:
        """The rectangles [B, C, *size] of them that begin at ``origin`` [B, 2]."""
        image = self.image[windows]
        part = cut_out(self.clean, origin, size, image)
        fill = self.fill
        if isinstance(fill, Tensor) and fill.dim() == 4:
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
        # every place that a window or a rectangle begins at: its row for each member of the row band, likewise columns
        self.slots: dict[tuple[Step, int], int] = {}
        rows: list[list[int]] = []
        columns: list[list[int]] = []
        for step, ways in schedule.ways.items():
            self._slot(step, -1, schedule.rows.start[step], schedule.columns.start[step], rows, columns)
            for at, way in enumerate(ways):
                if way == "splice":
                    assert step.slides is not None
                    down, across = (
                        [start * slide.stride - slide.before for start in band.start[step]]
                        for slide, band in zip(step.slides[at], (schedule.rows, schedule.columns), strict=True)
                    )
                    self._slot(step, at, down, across, rows, columns)
        # [places, members]; no place at all where all steps work on whole maps
        self.rows = torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, len(schedule.rows.members))
        self.columns = torch.tensor(columns, dtype=torch.int64, device=device).reshape(
            -1, len(schedule.columns.members)
        )

    def _slot(
        self, step: Step, at: int, down: list[int], across: list[int], rows: list[list[int]], columns: list[list[int]]
    ) -> None:
        self.slots[step, at] = len(rows)
        rows.append(down)
        columns.append(across)

    def run(self, clean: Clean, covered: Windows, windows: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """The network's output for a batch of windows, [B, ...].

        Args:
            clean: what the images give.
            covered: the images under their windows.
            windows: the numbers of the windows, int64 [B].
            row: for each its member of the row band, int64 [B].
            column: likewise for columns.
        """
        steps, schedule = self.steps, self.schedule
        origins = torch.stack((self.rows[:, row], self.columns[:, column]), dim=-1)  # [places, windows, 2]
        batch = Batch(clean, origins, covered.image[windows], {}, {})
        for at, step in enumerate(steps):
            if isinstance(step, Input):
                batch.values[step] = (
                    covered.rectangles(windows, origins[self.slots[step, -1]], schedule.size[step])
                    if step in schedule.ways
                    else covered.images(windows)
                )
            elif isinstance(step, Constant):
                batch.values[step] = step.value
            elif step in schedule.ways:
                inputs = [self._window(batch, step, number) for number in range(len(step.sources))]
                batch.values[step] = step.part(inputs, schedule.size[step])
            elif isinstance(step, Mean) and step.sources[0] in schedule.ways:
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
        """Called with each step's value: windows of a sweep leave the clean maps as they are."""

    def _window(self, batch: Batch, step: Step, at: int) -> Tensor:
        """The window of a source that the step's rectangle reads."""
        source = step.sources[at]
        if self.schedule.ways[step][at] == "as is":
            return batch.values[source]
        origin = batch.origins[self.slots[step, at]]
        size = window_size(step, at, self.schedule.size[step])
        return self._splice(batch, source, origin, size, step.pad_value if at == 0 else 0.0)

    def _whole(self, batch: Batch, source: Step) -> Tensor:
        """All of a source: as it is, or its rectangle pasted into the clean map."""
        if source not in self.schedule.ways or isinstance(source, Constant):
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
        window = spliced(batch.clean.maps[source], dirty, at, origin, size, batch.image, pad_value)
        return unplanes(window, source)

    def _mean(self, batch: Batch, step: Step) -> Tensor:
        """The clean mean, plus what the rectangle adds to it and less what was there before."""
        source = step.sources[0]
        top, left = batch.origins[self.slots[source, -1]].unbind(1)
        bottom, right = (start + extent for start, extent in zip((top, left), self.schedule.size[source], strict=True))
        integral, image = batch.clean.integrals[source], batch.image
        before = (
            integral[image, bottom, right]
            - integral[image, top, right]
            - integral[image, bottom, left]
            + integral[image, top, left]
        )
        dtype = torch.float64 if batch.values[source].dtype == torch.float64 else torch.float32
        total = integral[image, -1, -1] - before + batch.values[source].sum((2, 3), dtype=dtype)
        rows, columns = source.size
        mean = (total / (rows * columns)).to(batch.values[source].dtype)
        return step.finish(mean.reshape(-1, *step.shape))


@dataclass(frozen=True)
class Batch:
    """One batch on its way through the network."""

    clean: Clean
    origins: Tensor
    image: Tensor
    values: dict[Step, Tensor]
    pasted: dict[Step, Tensor]


def cut_out(maps: Tensor, origin: Tensor, size: Size, image: Tensor, pad_value: float = 0.0) -> Tensor:
    """Windows [B, C, *size] of ``maps`` [N, C, H, W] as they are."""
    nothing = maps.new_empty(len(origin), maps.shape[1], 0, 0)
    return spliced(maps, nothing, origin, origin, size, image, pad_value)


def spliced(
    maps: Tensor, dirty: Tensor, at: Tensor, origin: Tensor, size: Size, image: Tensor, pad_value: float
) -> Tensor:
    """:func:`fastviz.ops.splice`, also of whole numbers and of true and false."""
    if dirty.is_floating_point():
        return ops.splice(maps, dirty, at, origin, size, image, pad_value)
    return ops.splice(maps.double(), dirty.double(), at, origin, size, image, pad_value).to(dirty.dtype)
