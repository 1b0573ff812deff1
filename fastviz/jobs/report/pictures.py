"""Pictures of rows: a map over its photograph, and sheets of many pictures, so that a page loads few files."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fastviz.images import drawing, tensors
from fastviz.images.pillow import encoded, picture_of
from fastviz.jobs.report.lines import Line
from fastviz.jobs.tables.results import map_at
from fastviz.jobs.tables.schema import decode_map
from fastviz.methods.registry import EXPLAINERS

__all__ = ["ACROSS", "PER_SHEET", "Sheets", "drawn"]

PER_SHEET, ACROSS = 64, 8
"""Pictures in a sheet, and in a row of it."""

_COARSE = 32
"""A heat map with at most this side in pixels, and less than half of the input's, has a layer's resolution."""

_PICTURE_COLUMNS = ("map", "map_shape", "map_scale", "map_zero", "thumbnail", "overlay")
_KEPT_GROUPS = 3


def drawn(row: dict[str, Any], thumbnail: bytes | None, kind: str = "JPEG") -> bytes | None:
    """The map of a row over its thumbnail, or over grey without one, as JPEG or PNG; None if there is no map."""
    if row.get("map") is None:
        return None
    found = torch.from_numpy(decode_map(row["map"], row["map_shape"], row["map_scale"], row["map_zero"]).copy())
    photo = _photo(thumbnail, found)
    shown = picture_of(tensors.eight_bits(_over(row["method"], found, photo, photo.shape[-1])))
    return encoded(shown, kind, **({"quality": 90} if kind == "JPEG" else {}))


def _photo(thumbnail: bytes | None, found: Tensor) -> Tensor:
    """The thumbnail [3, H, W] in 0 to 1; grey with the map's size if there is none."""
    if thumbnail is None:
        return torch.full((3, *found.shape[-2:]), 0.5)
    with Image.open(io.BytesIO(thumbnail)) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255


def _over(method: str, found: Tensor, photo: Tensor, width: int) -> Tensor:
    """A map over its photograph; ``width`` is the width of the network's input, if known."""
    coarse = 2 * found.shape[-1] < width and found.shape[-1] <= _COARSE
    return drawing.draw(EXPLAINERS[method].draws, found, photo, coarse=coarse)


@dataclass(frozen=True)
class _RowGroup:
    """A row group's maps and pictures; ``start`` is the index of its first row in the part."""

    start: int
    table: Any


class Sheets:
    """Draws sheets of a job's pictures, with only a few row groups in memory.

    A sheet of photographs has one for each of :data:`PER_SHEET` lines. A sheet of maps has the maps of all methods for
    :attr:`lines_per_sheet` lines, line by line.

    Args:
        methods: the job's methods, in order.
        cell: height and width of each picture, in pixels; pictures with another aspect ratio are fitted into it.
        width: width of the network's input; None if it differs from image to image.
    """

    def __init__(self, methods: Sequence[str], cell: tuple[int, int], width: int | None = None) -> None:
        self.methods, self.cell, self._width = list(methods), cell, width
        # A power of two, so that the lines of a sheet of photographs fill a whole number of sheets of maps.
        self.lines_per_sheet = 1 << max(0, (PER_SHEET // max(1, len(self.methods))).bit_length() - 1)
        self._groups: OrderedDict[tuple[Path, int, int], _RowGroup] = OrderedDict()
        self._starts: OrderedDict[tuple[Path, int], list[int]] = OrderedDict()

    def photos(self, lines: Sequence[Line]) -> bytes:
        """The sheet of the photographs of up to :data:`PER_SHEET` lines, as JPEG."""
        return self._sheet([self._photograph(line) for line in lines])

    def maps(self, lines: Sequence[Line]) -> bytes:
        """The sheet of the maps of up to :attr:`lines_per_sheet` lines, as JPEG."""
        pictures: list[Image.Image | None] = []
        for line in lines:
            photo = self._photograph(line)
            for method in self.methods:
                number = line.rows.get(method)
                pictures.append(None if number is None else self._map(line, method, number, photo))
        return self._sheet(pictures)

    def _sheet(self, pictures: Sequence[Image.Image | None]) -> bytes:
        height, width = self.cell
        sheet = Image.new("RGB", (ACROSS * width, -(-max(1, len(pictures)) // ACROSS) * height), (128, 128, 128))
        for at, picture in enumerate(pictures):
            if picture is not None:
                row, column = divmod(at, ACROSS)
                left = column * width + (width - picture.width) // 2
                sheet.paste(picture, (left, row * height + (height - picture.height) // 2))
        return encoded(sheet, "JPEG", quality=85)

    def thumbnail(self, line: Line) -> bytes | None:
        """The thumbnail of a line as JPEG; None if the job kept none."""
        return self._value(line.part, line.first, "thumbnail")

    def _photograph(self, line: Line) -> Image.Image | None:
        content = self.thumbnail(line)
        return None if content is None else self._fitted(content)

    def _map(self, line: Line, method: str, number: int, photo: Image.Image | None) -> Image.Image | None:
        overlay = self._value(line.part, number, "overlay")
        if overlay is not None:
            return self._fitted(overlay)
        loaded = self._group(line.part, number)
        found = map_at(loaded.table, number - loaded.start) if "map" in loaded.table.column_names else None
        if found is None:
            return None
        values = torch.from_numpy(found)
        if photo is None:
            below = torch.full((3, *self._size(values.shape[-2], values.shape[-1])), 0.5)
        else:
            below = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
        size = (below.shape[-2], below.shape[-1])
        width = self._width or size[1]
        if values.shape[-1] > size[1]:  # averaging uses every pixel, unlike subsampling
            values = functional.adaptive_avg_pool2d(values.reshape(1, -1, *values.shape[-2:]), size)[0]
            values = values if found.ndim == 3 else values[0]
        return picture_of(tensors.eight_bits(_over(method, values, below, width)))

    def _fitted(self, content: bytes) -> Image.Image:
        """A JPEG file as a picture, resized to fit into the cell."""
        with Image.open(io.BytesIO(content)) as picture:
            height, width = self._size(picture.height, picture.width)
            picture.draft("RGB", (2 * width, 2 * height))
            return picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        scale = min(self.cell[0] / height, self.cell[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    # ---------------------------------------------------------------------------------------------------- from parts

    def _value(self, part: Path, number: int, column: str) -> bytes | None:
        loaded = self._group(part, number)
        value = loaded.table[column][number - loaded.start].as_py()
        return None if value is None else bytes(value)

    def _group(self, part: Path, number: int) -> _RowGroup:
        """The row group that holds the row with index ``number``."""
        from pyarrow import parquet

        stamp = part.stat().st_mtime_ns
        starts = self._starts.get((part, stamp))
        if starts is None:
            metadata = parquet.read_metadata(part)
            starts = [0]
            for group in range(metadata.num_row_groups):
                starts.append(starts[-1] + metadata.row_group(group).num_rows)
            _remember(self._starts, (part, stamp), starts, 64)
        group = int(np.searchsorted(starts, number, side="right")) - 1
        loaded = self._groups.get((part, stamp, group))
        if loaded is None:
            with parquet.ParquetFile(part) as file:
                names = [name for name in _PICTURE_COLUMNS if name in file.schema_arrow.names]
                loaded = _RowGroup(starts[group], file.read_row_group(group, columns=names).combine_chunks())
            _remember(self._groups, (part, stamp, group), loaded, _KEPT_GROUPS)
        return loaded


def _remember(kept: OrderedDict[Any, Any], key: object, value: object, most: int) -> None:
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)
