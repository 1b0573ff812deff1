"""How results are displayed: shapes in ``repr``, and a captioned contact sheet in notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fastviz.images import overlays, tensors
from fastviz.images.pillow import data_url, encoded

__all__ = ["NotebookResult", "captioned", "contact_sheet", "signed", "signed_maps", "words"]

_SIDE = 160
"""Longest side of a picture on a sheet, in pixels; smaller pictures are enlarged by the notebook."""
_MOST = 24
"""The most pictures on a sheet; of the others only the number is shown."""


class NotebookResult:
    """Base of the frozen dataclasses that methods return.

    They are declared with ``@dataclass(frozen=True, eq=False, repr=False)``. A class whose pictures are not in
    ``pictures`` defines :meth:`shown`.
    """

    def shown(self) -> Sequence[tuple[str, Tensor]]:
        """Caption and picture, [3 or 1, H, W] in 0 to 1 or uint8, of what a notebook shows."""
        pictures = getattr(self, "pictures", None)
        return [] if pictures is None else [(str(number), picture) for number, picture in enumerate(pictures)]

    def __repr__(self) -> str:
        listed = (f"{each.name}={_summary(getattr(self, each.name))}" for each in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(listed)})"

    def _repr_html_(self) -> str:
        return contact_sheet(self.shown(), repr(self))


def words(**numbers: float) -> str:
    """A caption: names and values, without those that are NaN.

    >>> words(value=3.14159, probability=float("nan"))
    'value 3.14'
    """
    return ", ".join(f"{name} {value:.3g}" for name, value in numbers.items() if value == value)


def signed(values: Tensor) -> Tensor:
    """A picture [3, H, W] of a map [H, W] of both signs: red above zero, blue below, white at zero."""
    scaled = tensors.normalize(values.detach().float().nan_to_num()[None], symmetric=True)[0]
    return overlays.colour_map(scaled, "seismic")


def signed_maps(maps: Tensor, name: str, values: Tensor) -> list[tuple[str, Tensor]]:
    """Captions and pictures of signed ``maps`` [..., H, W], each with its number and its value called ``name``."""
    each = zip(maps.flatten(0, -3), values.flatten().tolist(), strict=True)
    return [(f"{number}: {words(**{name: value})}", signed(one)) for number, (one, value) in enumerate(each)]


def captioned(pictures: Tensor, **columns: Tensor) -> list[tuple[str, Tensor]]:
    """Captions and ``pictures`` [N, C, H, W], each with its number of every column [N]; see :func:`words`."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    captions = [words(**dict(zip(columns, row, strict=True))) for row in rows]
    return list(zip(captions, pictures, strict=True))


def contact_sheet(pictures: Sequence[tuple[str, Tensor]], title: str) -> str:
    """HTML of small pictures [3 or 1, H, W], in 0 to 1 or uint8, with captions and a ``title``; all text is escaped."""
    cells = [
        '<figure style="display:inline-block;margin:4px;vertical-align:top">'
        f'<img src="{_data_uri(picture)}" style="height:{_SIDE}px" alt="{html.escape(caption)}">'
        f'<figcaption style="max-width:{2 * _SIDE}px">{html.escape(caption)}</figcaption></figure>'
        for caption, picture in pictures[:_MOST]
    ]
    rest = len(pictures) - len(cells)
    more = f"<p>and {rest} more</p>" if rest > 0 else ""
    return f"<div>{''.join(cells)}{more}<pre>{html.escape(title)}</pre></div>"


def _data_uri(picture: Tensor) -> str:
    """A picture as the address of a PNG that holds it, shrunk to a small one."""
    values = picture.detach().cpu()
    small = (values / 255 if values.dtype == torch.uint8 else values.float()).nan_to_num().clamp(0, 1).expand(3, -1, -1)
    scale = _SIDE / max(1, *small.shape[1:])
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in small.shape[1:])
        small = tensors.resize(small[None], height, width, "bilinear")[0]
    pixels = (small * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return data_url(encoded(Image.fromarray(pixels), "PNG"), "png")


def _summary(value: Any) -> str:
    """A field of a result in few words: dtype and shape of a tensor, the number of entries of a long sequence."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, dict):
        inner = ", ".join(f"{name!r}: {_summary(entry)}" for name, entry in list(value.items())[:4])
        return f"{{{inner}{', ...' if len(value) > 4 else ''}}}"
    if isinstance(value, (list, tuple)) and len(value) > 4:
        return f"{type(value).__name__} of {len(value)}"
    return repr(value)
