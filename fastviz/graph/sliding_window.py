"""Rectangle geometry of sliding windows: which outputs a change of the input reaches, which inputs an output reads.

Everything works on one axis at a time with plain ints; rows and columns of a map are two independent axes. Intervals
are pairs ``(start, stop)``, half open, in positions of a map; an empty one has ``start >= stop``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["EMPTY", "Field", "Interval", "Slide", "clip", "length", "place", "union"]

Interval = tuple[int, int]

EMPTY: Interval = (0, 0)
"""The interval that contains nothing."""


def length(interval: Interval) -> int:
    """The number of positions in ``interval``; 0 if it is empty.

    >>> length((3, 7)), length((7, 3))
    (4, 0)
    """
    return max(0, interval[1] - interval[0])


def clip(interval: Interval, size: int) -> Interval:
    """The part of ``interval`` inside a map of ``size`` positions; :data:`EMPTY` if there is none.

    >>> clip((-2, 3), 10), clip((12, 15), 10)
    ((0, 3), (0, 0))
    """
    start, stop = max(0, interval[0]), min(size, interval[1])
    return (start, stop) if start < stop else EMPTY


def union(intervals: Iterable[Interval]) -> Interval:
    """The smallest interval that contains all ``intervals``; empty ones are ignored.

    >>> union([(2, 4), (8, 9), (5, 5)])
    (2, 9)
    """
    full = [interval for interval in intervals if interval[0] < interval[1]]
    if not full:
        return EMPTY
    return min(start for start, _ in full), max(stop for _, stop in full)


def place(interval: Interval, extent: int, size: int) -> int:
    """Start of ``extent`` positions that contain ``interval`` and lie inside a map of ``size`` positions.

    The extent begins where the interval begins, and is shifted inwards where it would stick out at the end. An empty
    interval is placed like one that begins at its start.

    Raises:
        ValueError: the interval is longer than the extent, or the extent longer than the map.

    >>> place((2, 4), 3, 10), place((8, 10), 5, 10)
    (2, 5)
    """
    if length(interval) > extent or extent > size:
        raise ValueError(f"extent should be from {length(interval)} to {size}, got {extent}")
    return max(0, min(interval[0], size - extent))


@dataclass(frozen=True)
class Slide:
    """A window that slides along one axis: convolution, pooling, padding, slicing.

    Output ``o`` reads the inputs ``o * stride - before + j * dilation`` for ``j`` in ``0 .. kernel - 1``; those outside
    the map are padding. Padding alone is a kernel of 1, and taking every ``stride``-th position from ``start`` on is a
    kernel of 1 with ``before = -start``.

    Attributes:
        kernel: number of positions the window reads.
        stride: step of the window from one output to the next.
        before: padding at the start of the axis; negative where positions are dropped.
        after: padding at the end of the axis; negative where positions are dropped.
        dilation: step between two positions of the window.
        ceil: whether a last window that sticks out of the padded map counts, if it begins inside the map or the padding
            before it (``ceil_mode`` of torch's pooling).

    >>> Slide(kernel=3, stride=2, before=1, after=1).output_size(224)
    112
    """

    kernel: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    ceil: bool = False

    @property
    def span(self) -> int:
        """Length of the window from its first position to its last."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def is_pointwise(self) -> bool:
        """Whether each output reads the one input at its own position."""
        return self == Slide()

    def output_size(self, size: int) -> int:
        """Number of outputs for a map of ``size`` positions, by torch's rule; 0 if the window does not fit."""
        room = size + self.before + self.after - self.span
        if not self.ceil:
            return max(0, room // self.stride + 1)
        outputs = -(-room // self.stride) + 1
        begins_inside = (outputs - 1) * self.stride < size + self.before
        return max(0, outputs if begins_inside else outputs - 1)

    def reads(self, outputs: Interval) -> Interval:
        """The inputs that ``outputs`` read, padding positions (below 0, at or above the size) included.

        >>> Slide(kernel=3, stride=2, before=1).reads((0, 4))
        (-1, 8)
        """
        start, stop = outputs
        if start >= stop:
            return EMPTY
        return start * self.stride - self.before, (stop - 1) * self.stride - self.before + self.span

    def changes(self, inputs: Interval, size: int) -> Interval:
        """The smallest interval with every output, of a map of ``size`` outputs, that reads any of ``inputs``.

        >>> Slide(kernel=3, stride=2, before=1, after=1).changes((4, 6), 112)
        (2, 4)
        """
        first, last = inputs[0] + self.before, inputs[1] - 1 + self.before
        if first > last:
            return EMPTY
        start = max(0, -(-(first - self.span + 1) // self.stride))
        stop = min(size, last // self.stride + 1)
        # a dilated window may step over all of a short interval
        while start < stop and not self._hits(start, first, last):
            start += 1
        while start < stop and not self._hits(stop - 1, first, last):
            stop -= 1
        return (start, stop) if start < stop else EMPTY

    def _hits(self, output: int, first: int, last: int) -> bool:
        """Whether the window of ``output`` reads a position from ``first`` to ``last``, counted from the padding on."""
        begin = output * self.stride
        steps = max(0, -(-(first - begin) // self.dilation))
        return steps < self.kernel and begin + steps * self.dilation <= last


@dataclass(frozen=True)
class Field:
    """The receptive field of the units of a map along one axis of the input.

    Unit ``i`` depends on the inputs from ``start + i * stride`` on, ``size`` of them; those outside the input are
    padding. Where windows are dilated the field is the smallest interval with all of them.

    >>> Field().through(Slide(kernel=3, stride=2, before=1)).through(Slide(kernel=3, before=1))
    Field(size=7, stride=2, start=-3)
    """

    size: int = 1
    stride: int = 1
    start: int = 0

    def interval(self, unit: int) -> Interval:
        """The inputs that ``unit`` depends on, padding included."""
        start = self.start + unit * self.stride
        return start, start + self.size

    def through(self, slide: Slide) -> Field:
        """The field of the outputs of ``slide``, in the same input."""
        return Field(
            size=self.size + (slide.span - 1) * self.stride,
            stride=self.stride * slide.stride,
            start=self.start - slide.before * self.stride,
        )

    def join(self, other: Field) -> Field:
        """The field of units that depend on both maps at their own position.

        Raises:
            ValueError: the strides differ, so that no one field describes all units.
        """
        if self.stride != other.stride:
            raise ValueError(f"other should have stride {self.stride}, got {other.stride}")
        start = min(self.start, other.start)
        return Field(max(self.start + self.size, other.start + other.size) - start, self.stride, start)
