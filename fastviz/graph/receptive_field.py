"""The pixels that a unit of a layer depends on, and the boxes of an image that are enough for one unit."""

from __future__ import annotations

from dataclasses import dataclass

from fastviz.graph.sliding_window import Field, clip

__all__ = ["ReceptiveField"]


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that a unit of a layer depends on.

    Unit (i, j) depends on rows ``start[0] + i * stride[0]`` and the ``size[0] - 1`` after it, and on columns likewise.
    Rows and columns outside the image are padding. Where a window is dilated, or where branches with different fields
    join, the field is the smallest rectangle with all pixels.

    Attributes:
        size: height and width in pixels.
        stride: pixels between the fields of neighbouring units, down and across.
        start: top and left of the field of unit (0, 0); negative by the padding.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[int, int]

    def box(self, position: tuple[int, int], input_size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """Top, left, bottom and right (half open, in pixels) of the field of the unit at ``position``.

        Args:
            position: row and column of the unit in its map.
            input_size: height and width to cut the field to; None keeps what lies in the padding.

        >>> ReceptiveField(size=(7, 7), stride=(2, 2), start=(-3, -3)).box((0, 1))
        (-3, -1, 4, 6)
        """
        rows, columns = (field.interval(unit) for field, unit in zip(self._fields(), position, strict=True))
        if input_size is not None:
            rows, columns = clip(rows, input_size[0]), clip(columns, input_size[1])
        return rows[0], columns[0], rows[1], columns[1]

    def crop(
        self, position: tuple[int, int], input_size: tuple[int, int]
    ) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
        """A box of the image that is enough for one unit, and where the unit is in the map of that box alone.

        The box holds the unit's field, cut to the image, and begins at a multiple of the stride, so that the windows of
        all layers before fall on the same pixels as in the whole image; padding touches the unit only where it does
        in the whole image.

        Returns:
            The box (top, left, bottom, right) in pixels and the unit's (row, column) in the map of that box.

        >>> ReceptiveField(size=(11, 11), stride=(4, 4), start=(-3, -3)).crop((10, 0), (224, 224))
        ((36, 0, 48, 8), (1, 0))
        """
        top, left, bottom, right = self.box(position, input_size)
        top, left = top - top % self.stride[0], left - left % self.stride[1]
        return (top, left, bottom, right), (position[0] - top // self.stride[0], position[1] - left // self.stride[1])

    def _fields(self) -> tuple[Field, Field]:
        rows, columns = (Field(*numbers) for numbers in zip(self.size, self.stride, self.start, strict=True))
        return rows, columns
