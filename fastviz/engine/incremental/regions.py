"""The part of every map that a covered window changes, and groups of windows that change similar amounts.

Rows and columns are independent: a window is an interval of rows and one of columns, and so is everything it changes.
Many windows share their rows, and many their columns, so the work is done once for each distinct interval. Signals have
one such axis, volumes three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastviz.engine.incremental.steps import Constant, Input, Step
from fastviz.graph.sliding_window import EMPTY, Interval, length, place, union

__all__ = ["Band", "ChangedIntervals", "bands", "changed_intervals", "distinct"]

ChangedIntervals = dict[Step, list[Interval]]
"""For each map, the interval that each distinct interval of the image changes."""


@dataclass(frozen=True)
class Band:
    """Distinct intervals of one axis that are processed together, with rectangles of one length at each step.

    Attributes:
        members: the numbers of the intervals.
        extent: the length of the rectangles of each step, at least 1.
        start: where each member's rectangle starts, by step; shifted inwards at the border.
    """

    members: list[int]
    extent: dict[Step, int]
    start: dict[Step, list[int]]


def distinct(intervals: Tensor) -> tuple[list[Interval], Tensor]:
    """The distinct rows of ``intervals`` [P, 2], and the index of each of the P among them: int64 [P]."""
    values, number = torch.unique(intervals, dim=0, return_inverse=True)
    return [(int(start), int(stop)) for start, stop in values.tolist()], number


def changed_intervals(
    steps: Sequence[Step], axis: int, intervals: Sequence[Interval], cap: float | None = None
) -> ChangedIntervals:
    """The intervals that ``intervals`` along one axis of the image change at every step with a map.

    Args:
        steps: the network; steps after one without a map are left out.
        axis: 0 for the first axis, 1 for the second, ...
        intervals: of the image, within it.
        cap: None, or the maximum length of an interval as a fraction of its map; longer ones are cut on both sides.
            That ignores changes, so results are no longer exact.
    """
    found: ChangedIntervals = {}
    for step in steps:
        if isinstance(step, Input):
            found[step] = [interval if length(interval) else EMPTY for interval in intervals]
        elif isinstance(step, Constant):
            found[step] = [EMPTY] * len(intervals)
        elif step.slides is not None and all(source in found for source in step.sources):
            found[step] = _changes(step, axis, [found[source] for source in step.sources], cap)
    return found


def _changes(step: Step, axis: int, sources: list[list[Interval]], cap: float | None) -> list[Interval]:
    assert step.slides is not None
    size = step.size[axis]
    slides = [each[axis] for each in step.slides]
    if len(sources) == 1 and slides[0].is_pointwise:
        return sources[0]
    changed = []
    for intervals in zip(*sources, strict=True):
        interval = union(slide.changes(inputs, size) for slide, inputs in zip(slides, intervals, strict=True))
        changed.append(interval if cap is None else _cut(interval, max(1, round(cap * size))))
    return changed


def _cut(interval: Interval, most: int) -> Interval:
    """The middle of ``interval``, at most ``most`` positions."""
    spare = length(interval) - most
    return interval if spare <= 0 else (interval[0] + spare // 2, interval[1] - (spare - spare // 2))


def bands(
    steps: Sequence[Step],
    axis: int,
    found: ChangedIntervals,
    counts: Sequence[int],
    weights: Mapping[Step, float],
    overhead: float,
) -> list[Band]:
    """Groups the intervals into bands so that little unnecessary work is done.

    In a band, each step's rectangles are as long as the longest. The bands minimise the work, Σ over windows and steps
    of weight × extent, plus ``overhead`` per band; they are runs of intervals sorted by their own work.

    Args:
        steps: the network.
        axis: 0 for the first axis, 1 for the second, ...
        found: from :func:`changed_intervals`.
        counts: how many windows have each interval.
        weights: the work of one position along the axis, at each step.
        overhead: the extra work of one more band.
    """
    maps = [step for step in steps if step in found]
    lengths = torch.tensor([[max(1, length(interval)) for interval in found[step]] for step in maps]).double().T
    weight = torch.tensor([weights.get(step, 0.0) for step in maps], dtype=torch.float64)
    order = torch.argsort(lengths @ weight, stable=True)
    runs = _runs(lengths[order], torch.tensor(counts).double()[order], weight, overhead)
    result = []
    for first, last in runs:
        members = sorted(order[first:last].tolist())
        extent = {step: max(1, *(length(found[step][member]) for member in members)) for step in maps}
        start = {
            step: [place(found[step][member], extent[step], step.size[axis]) for member in members] for step in maps
        }
        result.append(Band(members, extent, start))
    return result


def _runs(lengths: Tensor, counts: Tensor, weight: Tensor, overhead: float) -> list[tuple[int, int]]:
    """The cheapest division of the rows of ``lengths`` [U, S] into runs, as (first, last + 1)."""
    number = len(lengths)
    best = torch.full((number + 1,), torch.inf, dtype=torch.float64)
    best[0] = 0.0
    begin = [0] * (number + 1)
    for first in range(number):
        longest = lengths[first:].cummax(dim=0).values
        cost = best[first] + overhead + counts[first:].cumsum(0) * (longest @ weight)
        for last in (cost < best[first + 1 :]).nonzero().flatten().tolist():
            best[first + 1 + last] = cost[last]
            begin[first + 1 + last] = first
    runs = []
    last = number
    while last:
        runs.append((begin[last], last))
        last = begin[last]
    return runs[::-1]
