"""The strongest places of every channel over a stream of feature maps, in memory that does not grow with the stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["TopK", "best_per_image", "best_places"]


class TopK:
    """The ``k`` highest values of each channel so far, and their places; equal values in order of arrival.

    Attributes:
        values: [C, k], highest first; −∞ where there have been fewer than ``k``.
        places: int64 [C, k, 3]: number of the image, row, column; −1 where there is none. Of maps with another number
            of ``axes`` than 2, a number for each of them behind that of the image.

    >>> best = TopK(k=2, channels=1)
    >>> best.add(torch.tensor([[3.0, 1.0]]), torch.tensor([[[0, 4, 4], [1, 2, 0]]]))
    >>> best.add(torch.tensor([[3.0]]), torch.tensor([[[2, 0, 0]]]))
    >>> best.values, best.places[0].tolist()
    (tensor([[3., 3.]]), [[0, 4, 4], [2, 0, 0]])
    """

    def __init__(
        self,
        k: int,
        channels: int,
        *,
        axes: int = 2,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.values = torch.full((channels, k), -torch.inf, dtype=dtype, device=device)
        self.places = torch.full((channels, k, 1 + axes), -1, device=device)

    def add(self, values: Tensor, places: Tensor) -> None:
        """Add ``values`` [C, m] at ``places`` [C, m, 3], in order, after all earlier ones; −∞ is ignored."""
        # The earlier values stand first and the sort is stable, so a new −∞ never displaces an entry.
        every = torch.cat([self.values, values], dim=1)
        kept = _highest(every, self.values.shape[1])
        self.values = every.gather(1, kept)
        self.places = torch.cat([self.places, places], dim=1).gather(
            1, kept[..., None].expand(-1, -1, self.places.shape[2])
        )


def best_per_image(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The highest value of every map and where it is: [C, N], and int64 [C, N, 3] of image, row and column.

    Of equal values the first counts, row by row. A map that holds NaN has −∞.

    Args:
        maps: [N, C, H, W], floating-point; or [N, C, L] or [N, C, D, H, W], whose places have 1 + 1 or 1 + 3 numbers.

    Returns:
        Values in the dtype and both on the device of ``maps``.

    >>> values, places = best_per_image(torch.arange(8.0).view(1, 2, 2, 2))
    >>> values.tolist(), places.tolist()
    ([[3.0], [7.0]], [[[0, 1, 1]], [[0, 1, 1]]])
    """
    size = maps.shape[2:]
    maps = _as_rows(maps)
    rows = _row_maxima(maps)
    values, row = rows.max(2)  # the first of equal ones
    line = maps.gather(2, row[:, :, None, None].expand(-1, -1, 1, maps.shape[3])).squeeze(2)
    image = torch.arange(len(maps), device=maps.device)[:, None].expand_as(row)
    places = torch.stack([image, row, line.argmax(2)], dim=2)
    return values.nan_to_num(-torch.inf, torch.inf, -torch.inf).T, _of_rows(places.transpose(0, 1), size)


def best_places(maps: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` highest values of each channel in all of ``maps``, in order of place: [C, m] and int64 [C, m, 3].

    Of equal values the first count: image by image, row by row. A map that holds NaN has −∞ everywhere.
    Only the k rows with the highest maxima can hold one of the k highest values, so only those are searched.

    Args:
        maps: [N, C, H, W], floating-point; or [N, C, L] or [N, C, D, H, W].
        k: values wanted; m is k, or all N · H · W values where those are fewer.

    Returns:
        Values in the dtype and both on the device of ``maps``; a place is image, row and column, or image and a number
        for each axis.

    >>> values, places = best_places(torch.arange(4.0).view(1, 1, 2, 2), 2)
    >>> values.tolist(), places.tolist()
    ([[2.0, 3.0]], [[[0, 1, 0], [0, 1, 1]]])
    """
    size = maps.shape[2:]
    maps = _as_rows(maps)
    N, C, H, W = maps.shape
    rows = _row_maxima(maps).nan_to_num(torch.nan, torch.inf, -torch.inf)
    broken = rows.isnan().any(2)  # [N, C]
    rows = rows.masked_fill(broken[..., None], -torch.inf).transpose(0, 1).reshape(C, N * H)
    chosen = _highest(rows, k).sort(dim=1).values  # [C, r], in order of place
    image, row = chosen // H, chosen % H
    channel = torch.arange(C, device=maps.device)[:, None]
    lines = maps[image, channel, row].masked_fill(broken[image, channel][..., None], -torch.inf)  # [C, r, W]
    values = lines.flatten(1)
    best = _highest(values, k).sort(dim=1).values
    line = best // W
    places = torch.stack([image.gather(1, line), row.gather(1, line), best % W], dim=2)
    return values.gather(1, best), _of_rows(places, size)


def _as_rows(maps: Tensor) -> Tensor:
    """Maps [N, C, H, W]: a signal is one row, the slices of a volume stand one under another."""
    return maps if maps.dim() == 4 else maps.unsqueeze(2) if maps.dim() == 3 else maps.flatten(2, 3)


def _of_rows(places: Tensor, size: Sequence[int]) -> Tensor:
    """Image, row and column in what :func:`_as_rows` made, as image and place in maps of this ``size``."""
    if len(size) == 2:
        return places
    image, row, column = places.unbind(2)
    return torch.stack([image, column] if len(size) == 1 else [image, row // size[1], row % size[1], column], dim=2)


def _highest(values: Tensor, k: int) -> Tensor:
    """Positions of the ``k`` highest of each row of ``values``, highest first, equal ones in order (topk keeps no
    order)."""
    return values.sort(dim=1, descending=True, stable=True).indices[:, :k]


def _row_maxima(maps: Tensor) -> Tensor:
    """The highest value of each row, [N, C, H] from [N, C, H, W]; NaN where there is one."""
    if maps.device.type == "cpu" and not maps.is_contiguous():
        # a maximum over channels_last rows runs 20 times faster as pooling, which works on all channels at once
        return functional.max_pool2d(maps, (1, maps.shape[3])).squeeze(3)
    return maps.amax(3)
