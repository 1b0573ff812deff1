"""The pixels that a unit of a layer depends on, and boxes of the image that suffice to compute one unit."""

from __future__ import annotations

from dataclasses import dataclass

from fastviz.graph.sliding_window import Field, clip

__all__ = ["ReceptiveField"]


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
