"""The plan of a sweep: for groups of windows, which steps work on rectangles, and what that costs.

Cost is counted, not measured: floating-point operations, plus bytes read and written, each counted as
:data:`FLOPS_PER_BYTE` operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Literal

import torch
from torch import Tensor

from fastviz.engine.incremental.regions import Band, ChangedIntervals, bands, changed_intervals, distinct
from fastviz.engine.incremental.steps import Constant, Input, Mean, Size, Step

__all__ = [
    "CALL_FLOPS",
    "FLOPS_PER_BYTE",
    "Cost",
    "Group",
    "Line",
    "Schedule",
    "dense_cost",
    "group_windows",
    "plan_lines",
    "predicted",
    "window_size",
]

FLOPS_PER_BYTE = 12.0
"""How many operations take as long as moving one byte to or from memory, on a CPU core as well as on a GPU."""

_BANDS = {1: 1, 2: 8, 3: 8}
"""How many batches one more band adds to a sweep with equally many bands along the other axes, by number of axes."""

CALL_FLOPS = {"cpu": 1e7, "cuda": 3e8}
"""The fixed cost of a step, in operations."""

WindowInput = Literal["direct", "splice"]


@dataclass(frozen=True)
class Cost:
    """Work of one window (or one image): floating-point operations and bytes moved."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    @property
    def total(self) -> float:
        """The total in operations."""
        return self.flops + FLOPS_PER_BYTE * self.bytes


@dataclass(frozen=True)
class Schedule:
    """How the windows of one row band and one column band (or of other axes) go through the network.

    Attributes:
        bands: one band for each axis of the image.
        size: rows and columns of each step's rectangle, for steps that work on rectangles.
        window_inputs: for these steps and each of their sources: ``"direct"``: the source's rectangle is the window;
            ``"splice"``: the window is cut from the clean map with the rectangle pasted in. Steps not listed work on
            whole inputs.
        cost: of one window, by step.
        peak: the maximum number of bytes that one window holds.
    """

    bands: tuple[Band, ...]
    size: dict[Step, Size]
    window_inputs: dict[Step, list[WindowInput]]
    cost: dict[Step, Cost]
    peak: float


@dataclass(frozen=True)
class Group:
    """Windows that share a schedule.

    Attributes:
        schedule: their schedule.
        windows: their numbers, int64 [B].
        members: for each its members of the bands, int64 [B, axes].
    """

    schedule: Schedule
    windows: Tensor
    members: Tensor


def group_windows(
    steps: Sequence[Step], boxes: Tensor, value_bytes: int, *, cap: float | None = None, device: str = "cpu",
    batches: float | None = None,
) -> list[Group]:  # fmt: skip
    """The windows ``boxes`` [P, 4] in groups, each with its schedule.

    Args:
        steps: the network.
        boxes: int64, top, left, bottom, right, inside the image: starts along each axis, then stops.
        value_bytes: bytes of one value.
        cap: see :func:`fastviz.engine.incremental.regions.changed_intervals`.
        device: "cpu" or "cuda": how much a call costs whatever its size.
        batches: how many batches one more band adds; None is the number for a sweep.
    """
    if not len(boxes):
        return []
    found: list[ChangedIntervals] = []
    numbers, bands_of = [], []
    axes = boxes.shape[1] // 2
    for axis in range(axes):
        intervals, number = distinct(boxes[:, [axis, axis + axes]])
        found.append(changed_intervals(steps, axis, intervals, cap))
        numbers.append(number)
    overhead = CALL_FLOPS[device] * len(steps) * (_BANDS[axes] if batches is None else batches)
    for axis in range(axes):
        counts = torch.bincount(numbers[axis]).tolist()
        weights = _weights(steps, found[:axis] + found[axis + 1 :], value_bytes)
        bands_of.append(bands(steps, axis, found[axis], counts, weights, overhead))
    groups = []
    for chosen in product(*bands_of):
        lists = [torch.tensor(band.members) for band in chosen]
        inside = [torch.isin(number, members) for number, members in zip(numbers, lists, strict=True)]
        windows = torch.stack(inside).all(0).nonzero().flatten()
        if len(windows):
            pairs = zip(numbers, lists, strict=True)
            members = torch.stack([torch.searchsorted(each, number[windows]) for number, each in pairs], dim=1)
            groups.append(Group(_schedule(steps, chosen, value_bytes), windows, members))
    return groups


def dense_cost(step: Step, value_bytes: int) -> Cost:
    """The work of a step on whole inputs, for one image."""
    if not step.sources:
        return Cost()
    values = _values(step, step.size) + sum(_values(source, source.size) for source in step.sources)
    return Cost(step.flops * prod(step.size), values * value_bytes)


def predicted(steps: Sequence[Step], groups: Sequence[Group], value_bytes: int) -> dict[str, float]:
    """Operations of one window, incremental (``flops``) and dense (``dense_flops``), and the gain in total work."""
    dense = sum((dense_cost(step, value_bytes) for step in steps), Cost())
    windows = sum(len(group.windows) for group in groups)
    if not windows:
        return {"flops": dense.flops, "dense_flops": dense.flops, "predicted_gain": 1.0}
    work = Cost()
    for group in groups:
        cost = sum(group.schedule.cost.values(), Cost())
        share = len(group.windows) / windows
        work += Cost(cost.flops * share, cost.bytes * share)
    gain = dense.total / work.total if work.total else 1.0  # a model without computation, such as a lone dropout
    return {"flops": work.flops, "dense_flops": dense.flops, "predicted_gain": gain}


def _weights(steps: Sequence[Step], across: Sequence[ChangedIntervals], value_bytes: int) -> dict[Step, float]:
    """The work of one position along an axis, at each step, for rectangles of mean length ``across`` the other axes."""
    weights = {}
    for step in steps:
        if step.layout is not None and step.sources and all(step in reached for reached in across):
            work = Cost(step.flops, 3.0 * step.channels * value_bytes).total
            for reached in across:
                lengths = [max(1, stop - start) for start, stop in reached[step]]
                work *= sum(lengths) / len(lengths)
            weights[step] = work
    return weights


def _values(step: Step, size: Size) -> float:
    return float(prod(size) * step.channels)


def _schedule(steps: Sequence[Step], chosen: tuple[Band, ...], value_bytes: int) -> Schedule:
    """Rectangles up to the step from which whole maps cost less."""
    sizes = {step: tuple(band.extent[step] for band in chosen) for step in chosen[0].extent}
    natural: dict[Step, list[WindowInput]] = {}
    for step in steps:
        if isinstance(step, (Input, Constant)):
            natural[step] = []
        elif step in sizes and sizes[step] != step.size and all(source in natural for source in step.sources):
            natural[step] = [_window_input(step, at, chosen) for at in range(len(step.sources))]
    part_costs = {step: _part_cost(step, natural[step], sizes, value_bytes) for step in natural}
    cut = _cheapest_cut(steps, natural, part_costs, value_bytes)
    window_inputs = {step: natural[step] for step in steps[:cut] if step in natural}
    cost = {}
    pasted: set[Step] = set()
    for step in steps:
        if step in window_inputs:
            cost[step] = part_costs[step]
            continue
        cost[step] = dense_cost(step, value_bytes)
        for source in step.sources:
            if source in window_inputs and source not in pasted:
                cost[step] += _paste_cost(step, source, sizes, value_bytes)
                pasted.add(source)
    if steps[-1] in window_inputs:
        cost[steps[-1]] += Cost(0.0, 2.0 * _values(steps[-1], steps[-1].size) * value_bytes)
    kept = {step: sizes[step] for step in window_inputs}
    return Schedule(chosen, kept, window_inputs, cost, _peak(steps, kept, window_inputs, value_bytes))


def _window_input(step: Step, at: int, chosen: tuple[Band, ...]) -> WindowInput:
    """Whether the windows that ``step`` reads of a source are that source's rectangles, for every member."""
    source = step.sources[at]
    assert step.slides is not None
    if isinstance(source, Constant):
        return "splice"  # it has no rectangle, only the whole map
    for band, slide in zip(chosen, step.slides[at], strict=True):
        begins = [slide.reads((start, start + band.extent[step])) for start in band.start[step]]
        ends = [(start, start + band.extent[source]) for start in band.start[source]]
        if begins != ends:
            return "splice"
    return "direct"


def window_size(step: Step, at: int, size: Size) -> Size:
    """Rows and columns of the window of a source that a rectangle of ``size`` reads."""
    assert step.slides is not None
    spans = [slide.reads((0, extent)) for slide, extent in zip(step.slides[at], size, strict=True)]
    return tuple(stop - start for start, stop in spans)


def _part_cost(step: Step, window_inputs: list[WindowInput], sizes: dict[Step, Size], value_bytes: int) -> Cost:
    if not step.sources:
        return Cost(0.0, _values(step, sizes[step]) * value_bytes if isinstance(step, Input) else 0.0)
    values = _values(step, sizes[step])
    for at, (source, kind) in enumerate(zip(step.sources, window_inputs, strict=True)):
        window = _values(source, window_size(step, at, sizes[step]))
        values += window * (3 if kind == "splice" else 1)
    return Cost(step.flops * prod(sizes[step]), values * value_bytes)


def _paste_cost(step: Step, source: Step, sizes: dict[Step, Size], value_bytes: int) -> Cost:
    """The extra cost of a step on whole inputs because a source has only a rectangle."""
    if isinstance(step, Mean):
        inside = _values(source, sizes[source])
        return Cost(inside - _values(source, source.size), (inside - _values(source, source.size)) * value_bytes)
    return Cost(0.0, 2.0 * _values(source, source.size) * value_bytes)


def _cheapest_cut(
    steps: Sequence[Step], natural: dict[Step, list[WindowInput]], part_costs: dict[Step, Cost], value_bytes: int
) -> int:
    """The index in ``steps`` from which all steps work on whole maps."""
    last_reader: dict[Step, int] = {}
    always_whole: set[Step] = set()
    for at, step in enumerate(steps):
        if not isinstance(step, Mean):  # means take rectangles
            last_reader.update(dict.fromkeys(step.sources, at))
            always_whole.update(step.sources if step not in natural else ())
    last_reader[steps[-1]] = len(steps)  # the caller wants all of the output
    always_whole.add(steps[-1])
    # change[c]: how much more a cut at c costs than one at c - 1
    change = [0.0] * (len(steps) + 2)
    for at, step in enumerate(steps):
        if step not in natural:
            continue
        change[at + 1] += part_costs[step].total - dense_cost(step, value_bytes).total
        if isinstance(step, Constant) or step not in last_reader:
            continue
        paste = FLOPS_PER_BYTE * 2.0 * _values(step, step.size) * value_bytes
        change[at + 1] += paste
        if step not in always_whole:
            change[min(last_reader[step] + 1, len(steps) + 1)] -= paste
    best, lowest, total = 0, 0.0, 0.0
    for cut in range(1, len(steps) + 1):
        total += change[cut]
        if total < lowest:
            best, lowest = cut, total
    # a cut right after the image would paste values that the image already contains
    return best if best > 1 else 0


def _peak(
    steps: Sequence[Step], sizes: dict[Step, Size], window_inputs: dict[Step, list[WindowInput]], value_bytes: int
) -> float:
    """The maximum number of bytes that one window holds: outputs still needed, and the windows that a step reads."""
    last_reader = {source: at for at, step in enumerate(steps) for source in step.sources}
    held = highest = 0.0
    freed: dict[int, float] = {}
    for at, step in enumerate(steps):
        if isinstance(step, Constant):
            continue
        own = _values(step, sizes.get(step, step.size)) * value_bytes
        windows = 0.0
        for number, source in enumerate(step.sources):
            if step in window_inputs and window_inputs[step][number] == "splice":
                windows += _values(source, window_size(step, number, sizes[step])) * value_bytes
            elif step not in window_inputs and source in window_inputs:
                windows += _values(source, source.size) * value_bytes
        held += own
        highest = max(highest, held + windows)
        end = last_reader.get(step, len(steps))
        freed[end] = freed.get(end, 0.0) + own
        held -= freed.pop(at, 0.0)
    return highest


@dataclass(frozen=True)
class Line:
    """One step of a :class:`Plan`.

    Attributes:
        label: the module, torch's dotted name.
        operation: what the step does.
        shape: of its output for one image.
        rectangle: positions along each axis (rows, columns) that are computed on average, up to those of the whole map.
        incremental: the fraction of windows for which it works on a rectangle.
        dense_flops: operations per image.
        flops: operations per window.
        dense_bytes: bytes moved per image.
        bytes: bytes moved per window.
    """

    label: str
    operation: str
    shape: tuple[int, ...]
    rectangle: tuple[float, ...]
    incremental: float
    dense_flops: float
    flops: float
    dense_bytes: float
    bytes: float


def plan_lines(steps: Sequence[Step], groups: Sequence[Group], value_bytes: int) -> list[Line]:
    """The plan of each step but constants, averaged over the windows of the groups."""
    windows = sum(len(group.windows) for group in groups)
    lines = []
    for step in steps:
        if isinstance(step, Constant):
            continue
        dense, work = dense_cost(step, value_bytes), Cost()
        rectangle, incremental = [0.0] * len(step.size), 0.0
        for group in groups:
            share = len(group.windows) / windows
            size, cost = group.schedule.size.get(step, step.size), group.schedule.cost[step]
            rectangle = [total + share * extent for total, extent in zip(rectangle, size, strict=True)]
            incremental += share * (step in group.schedule.window_inputs)
            work += Cost(cost.flops * share, cost.bytes * share)
        lines.append(
            Line(
                *(step.label, step.operation, step.shape, tuple(rectangle), incremental),
                *(dense.flops, work.flops, dense.bytes, work.bytes),
            )
        )
    return lines
