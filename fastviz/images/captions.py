"""Pictures with text: captioned panels side by side, and a legend of colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from fastviz._util.output_folder import printable
from fastviz.images import tensors
from fastviz.images.pillow import picture_of

__all__ = ["over", "panels", "write"]

_GAP, _LINE, _SIZE = 8, 26, 15
_PAPER, _INK = (255, 255, 255), (20, 20, 24)


def panels(
    pictures: Sequence[tuple[str, Tensor]], *, height: int = 320, legend: Sequence[tuple[str, str]] = ()
) -> Tensor:
    """Pictures side by side, a caption above each, and a legend below: [3, H, W] in 0 to 1.

    Args:
        pictures: caption and picture [3, h, w] in 0 to 1; each is scaled to the ``height``, without smoothing where it
            is enlarged more than fourfold, so that single values stay visible.
        height: of the pictures, in pixels.
        legend: colour (six hexadecimal digits) and words.

    >>> panels([("before", torch.zeros(3, 10, 10)), ("after", torch.ones(3, 10, 10))], height=64).shape
    torch.Size([3, 106, 152])
    """
    scaled = [(caption, _scaled(picture, height)) for caption, picture in pictures]
    width = _GAP + sum(picture.shape[2] + _GAP for _, picture in scaled)
    lines = _legend_lines(legend, width)
    sheet = Image.new("RGB", (width, 2 * _GAP + _LINE + height + _LINE * len(lines)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    left = _GAP
    for caption, picture in scaled:
        write(pen, (left, _GAP + _LINE // 2), caption, picture.shape[2])
        sheet.paste(picture_of(tensors.eight_bits(picture)), (left, _GAP + _LINE))
        left += picture.shape[2] + _GAP
    for number, line in enumerate(lines):
        middle = _GAP + _LINE + height + _LINE * number + _LINE // 2 + 2
        for at, colour, words in line:
            pen.rectangle([at, middle - 7, at + 14, middle + 7], fill=f"#{colour}")
            write(pen, (at + 20, middle), words, width)
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).contiguous().float() / 255


def over(picture: Tensor, words: str) -> Tensor:
    """``picture`` [3, H, W] in 0 to 1 with ``words`` in white at its lower border, where it is large enough for them.

    >>> over(torch.zeros(3, 60, 200), "nothing").amax() > 0.5
    tensor(True)
    """
    height, width = picture.shape[-2:]
    size = max(8, min(22, width // 9))
    if height < 2 * size or width < 6 * size:
        return picture.contiguous()
    board = picture_of((picture * 255).round().byte())
    write(ImageDraw.Draw(board), (size, round(height - 1.2 * size)), words, width - 2 * size, size=size, ink=_PAPER)
    return torch.from_numpy(np.array(board)).permute(2, 0, 1).to(picture) / 255


def _scaled(picture: Tensor, height: int) -> Tensor:
    width = max(1, round(picture.shape[2] * height / picture.shape[1]))
    if height > 4 * picture.shape[1]:
        return functional.interpolate(picture[None].float().cpu(), (height, width), mode="nearest-exact")[0]
    return tensors.resize(picture[None].float().cpu(), height, width, "bilinear")[0]


def _legend_lines(legend: Sequence[tuple[str, str]], width: int) -> list[list[tuple[int, str, str]]]:
    """The entries of a legend in lines that fit: place from the left, colour, words."""
    font = ImageFont.load_default(size=_SIZE)
    lines: list[list[tuple[int, str, str]]] = []
    at = width
    for colour, words in legend:
        wide = 20 + int(font.getlength(words)) + 3 * _GAP
        if at + wide > width:
            lines.append([])
            at = _GAP
        lines[-1].append((at, colour, words))
        at += wide
    return lines


def write(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, int],
    text: str,
    width: float,
    *,
    size: int = _SIZE,
    ink: tuple[int, int, int] = _INK,
) -> float:
    """Write ``text`` in one line from ``at`` (left, middle) on, cut where it is wider than ``width``; where it ends."""
    font = ImageFont.load_default(size=size)
    shown = printable(text)
    while len(shown) > 1 and pen.textlength(shown, font=font) > width:
        shown = shown.removesuffix("...")[:-1] + "..."
    pen.text(at, shown, fill=ink, font=font, anchor="lm")
    return at[0] + pen.textlength(shown, font=font)
