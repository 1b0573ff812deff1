"""A map of images: one large picture with each image at its position on a plane, without overlaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastviz._util import checks
from fastviz.images import tensors
from fastviz.images.notebook import NotebookResult
from fastviz.vectors.assignment import arrange, cells_of

__all__ = ["ImageMap", "image_map"]

_LARGEST_SIDE = 9000
"""In pixels; a picture of this size opens in any viewer."""


@dataclass(frozen=True, eq=False, repr=False)
class ImageMap(NotebookResult):
    """The result of :func:`image_map`.

    Attributes:
        picture: uint8 [3, H, W] on the CPU, see :func:`fastviz.images.save_image`.
        boxes: int64 [N, 4], the position of each picture: top, left, bottom, right in pixels, half-open.

    >>> found = image_map(torch.rand(4, 3, 8, 8), torch.rand(4, 2), tile=8)
    >>> found.boxes.shape
    torch.Size([4, 4])
    """

    picture: Tensor
    boxes: Tensor

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        return [("", self.picture.float() / 255)]


def image_map(
    pictures: Tensor,
    coordinates: Tensor,
    *,
    layout: Literal["scatter", "grid"] = "scatter",
    tile: int | None = None,
    background: float = 1.0,
) -> ImageMap:
    """One large picture of many pictures, each at its position on the plane.

    A scatter has about three cells per picture: isolated pictures lie within half a cell of their position, and crowded
    ones are moved apart. A grid has just enough cells, in equal numbers of rows and columns. Cells are assigned to
    minimise the sum of squared distances from the coordinates, see :func:`arrange`.

    Args:
        pictures: [N, 3, h, w], uint8 or floating-point in 0 to 1.
        coordinates: [N, 2], to the right and upwards, in any unit (for example from :func:`fastviz.tsne`). A scatter
            keeps the proportions of the two axes, up to 2 to 1; a grid stretches both to its sides.
        layout: ``"scatter"`` or ``"grid"``.
        tile: side of a picture in pixels; None is that of the pictures, or less if the map would be larger than 9,000
            pixels.
        background: brightness of empty parts, 0 to 1.

    The memory is that of the result and the tiles; tens of thousands of pictures take seconds.

    Returns:
        The large picture, and the position of each picture in it.

    Raises:
        TypeError, ValueError: wrong shapes, no pictures, coordinates that are not finite.

    >>> image_map(torch.rand(10, 3, 8, 8), torch.rand(10, 2), layout="grid").picture.shape
    torch.Size([3, 28, 37])
    """
    if not isinstance(pictures, Tensor) or pictures.dtype != torch.uint8:
        checks.tensor(pictures, "pictures")
    if pictures.dim() != 4 or pictures.shape[1] != 3 or not pictures.numel():
        raise ValueError(f"pictures should have shape [N, 3, h, w], N at least 1, got {list(pictures.shape)}")
    if pictures.dtype != torch.uint8 and not (pictures.amin() >= -1e-3 and pictures.amax() <= 1 + 1e-3):
        raise ValueError(
            f"pictures should have values 0 to 1, got {float(pictures.amin()):g} to {float(pictures.amax()):g}"
        )
    checks.number(background, "background", low=0, high=1)
    points, (rows, columns) = cells_of(coordinates, layout)
    if len(points) != len(pictures):
        raise ValueError(f"coordinates should be one for each of the {len(pictures)} pictures, got {len(points)}")
    side = max(pictures.shape[-2:]) if tile is None else checks.whole_number(tile, "tile", minimum=1)
    if tile is None:
        side = max(4, min(side, _LARGEST_SIDE // max(rows, columns) - 1))
    cell = arrange(points, rows, columns)
    step = side + 1
    paper = round(255 * background)
    # Channels last in memory, as in files, so that saving needs no copy.
    sheet = torch.full((rows * step + 1, columns * step + 1, 3), paper, dtype=torch.uint8).permute(2, 0, 1)
    boxes = torch.empty(len(pictures), 4, dtype=torch.int64)
    for number, (picture, place) in enumerate(zip(pictures, cell.tolist(), strict=True)):
        shown = _tile(picture, side)
        height, width = shown.shape[-2:]
        top, left = place // columns * step + 1 + (side - height) // 2, place % columns * step + 1 + (side - width) // 2
        sheet[:, top : top + height, left : left + width] = shown
        boxes[number] = torch.tensor([top, left, top + height, left + width])
    return ImageMap(sheet, boxes)


def _tile(picture: Tensor, side: int) -> Tensor:
    """A picture as uint8, scaled to fit into ``side``×``side``."""
    height, width = picture.shape[-2:]
    if picture.dtype == torch.uint8 and max(height, width) == side:
        return picture.cpu()
    values = picture.float().cpu() / (255 if picture.dtype == torch.uint8 else 1)
    factor = side / max(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    if size != (height, width):
        values = tensors.resize(values[None], *size, "bilinear")[0]
    return tensors.eight_bits(values)
