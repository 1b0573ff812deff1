"""Receptive fields: the pixels that a unit of a layer depends on, and boxes of the image that suffice to compute it.

:func:`fastviz.receptive_field` gives that of a layer by its name.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fastviz.graph.calls import call_name
from fastviz.graph.model_graph import Trace, label
from fastviz.graph.reach import Layout, Reach
from fastviz.graph.sliding_window import Field, clip

__all__ = ["NodeField", "ReceptiveField", "fields_of_nodes"]


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that a unit of a layer depends on.

    Unit (i, j) depends on rows ``start[0] + i * stride[0]`` and the ``size[0] - 1`` after it, and likewise for columns.
    Of signals there is one number for rows and columns, of volumes there are three, depth first. Rows and columns
    outside the image are padding. Where a window is dilated, or where branches with different fields join, the field is
    the smallest rectangle with all pixels.

    Attributes:
        size: height and width in pixels.
        stride: pixels between the fields of neighbouring units, down and across.
        start: top and left of the field of unit (0, 0); negative by the padding.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    start: tuple[int, ...]

    def box(self, position: tuple[int, ...], input_size: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Top, left, bottom and right (half open, in pixels) of the field of the unit at ``position``.

        Args:
            position: row and column of the unit in its map.
            input_size: height and width to cut the field to; None keeps what lies in the padding.

        >>> ReceptiveField(size=(7, 7), stride=(2, 2), start=(-3, -3)).box((0, 1))
        (-3, -1, 4, 6)
        """
        intervals = [field.interval(unit) for field, unit in zip(self._fields(), position, strict=True)]
        if input_size is not None:
            intervals = [clip(interval, size) for interval, size in zip(intervals, input_size, strict=True)]
        return (*(start for start, _ in intervals), *(stop for _, stop in intervals))

    def crop(self, position: tuple[int, ...], input_size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A box of the image that suffices to compute one unit, and the unit's position in the map of that box alone.

        The box holds the unit's field, cut to the image, and begins at a multiple of the stride, so that the windows of
        all layers before fall on the same pixels as in the whole image; padding touches the unit only where it does
        in the whole image.

        Returns:
            The box (top, left, bottom, right) in pixels and the unit's (row, column) in the map of that box.

        >>> ReceptiveField(size=(11, 11), stride=(4, 4), start=(-3, -3)).crop((10, 0), (224, 224))
        ((36, 0, 48, 8), (1, 0))
        """
        box, axes = self.box(position, input_size), len(self.size)
        starts = [start - start % stride for start, stride in zip(box, self.stride, strict=False)]
        places = zip(position, starts, self.stride, strict=True)
        return (*starts, *box[axes:]), tuple(unit - start // stride for unit, start, stride in places)

    def _fields(self) -> list[Field]:
        return [Field(*numbers) for numbers in zip(self.size, self.stride, self.start, strict=True)]


@dataclass(frozen=True)
class NodeField:
    """The receptive field of a call's output, or why there is none."""

    field: ReceptiveField | None
    reason: str = ""
    layout: Layout | None = None


def fields_of_nodes(traced: Trace) -> dict[fx.Node, NodeField]:
    """The receptive field of every call that depends on the image, by the graph."""
    layout = traced.reaches[traced.image].layout or ()
    fields: dict[fx.Node, tuple[Field, ...]] = {traced.image: tuple(Field() for _ in layout)}
    found = {traced.image: NodeField(_receptive_field(fields[traced.image]), layout=layout)}
    for node in traced.graph.nodes:
        if node.op != "call_function" or traced.reaches[node].kind in ("constant", "filled"):
            continue
        sources = [source for source in node.all_input_nodes if source in found]
        reason = next((found[source].reason for source in sources if found[source].reason), "")
        if not reason:
            try:
                fields[node] = _joined_field(traced.reaches[node], [fields[source] for source in sources])
            except ValueError as error:
                reason = f"{call_name(node)} in {label(node) or 'the model'!r} {error}"
        known = not reason
        field, axes = (_receptive_field(fields[node]), traced.reaches[node].layout) if known else (None, None)
        found[node] = NodeField(field, reason, axes)
    return found


def _receptive_field(fields: tuple[Field, ...]) -> ReceptiveField:
    sizes, strides, starts = zip(*((each.size, each.stride, each.start) for each in fields), strict=True)
    return ReceptiveField(sizes, strides, starts)


def _joined_field(reach: Reach, sources: list[tuple[Field, ...]]) -> tuple[Field, ...]:
    """The field, along each axis, of what one call makes of maps with the fields ``sources``.

    Raises:
        ValueError: the call depends on the whole map, or the strides of the sources differ.
    """
    if not reach.is_local:
        raise ValueError("makes every unit depend on the whole image")
    joined = sources[0]
    for other in sources[1:]:
        joined = tuple(field.join(another) for field, another in zip(joined, other, strict=True))
    if reach.slides is not None:
        joined = tuple(field.through(slide) for field, slide in zip(joined, reach.slides, strict=True))
    return joined
