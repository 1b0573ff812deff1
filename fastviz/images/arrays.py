"""Pictures of signals and volumes: curves on a coloured band, sheets of slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import ImageDraw
from torch import Tensor
from torch.nn import functional

from fastviz._util import checks
from fastviz.images import captions, drawing, overlays, tensors
from fastviz.images.pillow import picture_of, tensor_of

__all__ = ["draw_signal", "draw_volume"]

Draws = Literal["heat", "signed"]

_WIDTH, _ROW, _PADDING = 960, 96, 6
_FINE = 2
"""Curves are drawn this many times larger and shrunk, for smooth edges."""

_CELL = 112
"""Slices smaller than this are enlarged, by whole numbers."""

_PERCENTILE = 99.0


def draw_signal(
    signal: Tensor, attribution: Tensor | None, draws: Draws = "signed", *, width: int = _WIDTH, height: int = _ROW
) -> Tensor:
    """A picture of a signal's channels as curves, one under another, on a band in the colours of its map.

    If a signal has more samples than the picture has columns, each column shows the lowest and the highest value and
    the strongest of the map, so that short events stay visible.

    Args:
        signal: [C, L] or [L], finite; each channel is scaled to its own range.
        attribution: [l], any length: resized linearly to L. None draws the curves alone.
        draws: ``"signed"``: red speaks for the target, blue against it, white is neither; ``"heat"``: white is nothing,
            red is much. Values are scaled so that the 99th percentile of the magnitudes of those that are not
            zero is full colour.
        width, height: of a channel's row, in pixels.

    Returns:
        [3, C · height, width], 0 to 1. A map of zeros says so in words.

    Raises:
        TypeError, ValueError: other shapes, values that are not finite.

    >>> draw_signal(torch.rand(2, 500), torch.rand(500)).shape
    torch.Size([3, 192, 960])
    """
    checks.tensor(signal, "signal", dims=(1, 2), layout="[C, L]")
    if attribution is not None:
        checks.tensor(attribution, "attribution", dims=(1,), layout="[L]")
    checks.one_of(draws, "draws", ("heat", "signed"))
    for value, argument in ((width, "width"), (height, "height")):
        checks.whole_number(value, argument, minimum=16)
    curves = signal.detach().float().cpu().reshape(-1, signal.shape[-1])
    if not curves.numel() or not bool(curves.isfinite().all()):
        raise ValueError(f"signal should be finite and not empty, got {list(signal.shape)}")
    band = torch.ones(3, 1, 1)
    if attribution is not None:
        band = _band(attribution.detach().float().cpu(), curves.shape[1], width, draws)
    rows = [_curve(curve, band.expand(3, height, width)) for curve in curves]
    picture = torch.cat(rows, dim=1)
    return picture if attribution is None or attribution.any() else captions.over(picture * 0.6, "a map of zeros")


def draw_volume(
    volume: Tensor, attribution: Tensor | None, draws: Draws = "signed", *, slices: int = 16, columns: int | None = None
) -> Tensor:
    """A sheet of a volume's slices, front to back, each with its part of the map in colours over it.

    Args:
        volume: [D, H, W], or [C, D, H, W], whose channels are averaged; grey from its 1st to its 99th percentile.
        attribution: [d, h, w], any size: resized linearly to D, H, W. None shows the slices alone.
        draws: as for photographs: ``"signed"``: red speaks for the target, blue against it; ``"heat"``: bright is much.
            All slices share one scale.
        slices: how many at most, evenly spaced; their numbers stand on them.
        columns: slices side by side; None is about a square.

    Returns:
        [3, height, width] in 0 to 1. A map of zeros says so in words.

    Raises:
        TypeError, ValueError: other shapes, values that are not finite.

    >>> draw_volume(torch.rand(6, 64, 64), torch.rand(3, 8, 8), columns=3).shape
    torch.Size([3, 268, 400])
    """
    checks.tensor(volume, "volume", dims=(3, 4), layout="[D, H, W] or [C, D, H, W]")
    if attribution is not None:
        checks.tensor(attribution, "attribution", dims=(3,), layout="[D, H, W]")
    checks.one_of(draws, "draws", ("heat", "signed"))
    checks.whole_number(slices, "slices", minimum=1)
    grey = volume.detach().float().cpu()
    grey = grey if grey.dim() == 3 else grey.mean(0)
    if not grey.numel() or not bool(grey.isfinite().all()):
        raise ValueError(f"volume should be finite and not empty, got {list(volume.shape)}")
    # normalize() keeps a number of extreme values on both sides
    shown = tensors.normalize(grey[None], percentile=_PERCENTILE, dims=3)[0]
    scaled = None if attribution is None else _scaled(attribution, grey.shape, draws)
    times = max(1, -(-_CELL // max(grey.shape[1:])))
    cells = []
    for at in _evenly(len(grey), slices):
        photo, words = shown[at].expand(3, -1, -1), str(at)
        if scaled is not None:
            photo = drawing.laid(draws, scaled[at], photo)
        elif attribution is not None:
            photo, words = photo * 0.6, f"{at}: a map of zeros"
        large = photo.repeat_interleave(times, 1).repeat_interleave(times, 2)
        cells.append(captions.over(large, words))
    return tensors.grid(torch.stack(cells), columns=columns, padding=4)


def _scaled(attribution: Tensor, size: Sequence[int], draws: Draws) -> Tensor | None:
    """A map of a volume at its ``size``, from 0 to 1; None if it is zero everywhere."""
    found = attribution.detach().float().cpu()[None, None]
    strength = _strength(functional.interpolate(found, tuple(size), mode="trilinear")[0, 0], draws)
    if not found.any():
        return None
    return strength * 0.5 + 0.5 if draws == "signed" else strength


def _strength(values: Tensor, draws: Draws) -> Tensor:
    """``values`` from -1 (``"signed"``) or 0 to 1: 1 is the 99th percentile of the magnitudes of those that are not 0.

    With zeros included it would be 0 for a map that is empty but for a hundredth of a long signal or a large volume.
    """
    if not bool(values.isfinite().all()):
        raise ValueError("attribution should be finite, got NaN or infinity")
    sizes = values.abs()[values != 0]
    if not len(sizes):
        return torch.zeros_like(values)
    full = sizes.kthvalue(max(1, round(_PERCENTILE / 100 * len(sizes)))).values
    return (values / full).clamp(-1 if draws == "signed" else 0, 1)


def _evenly(count: int, most: int) -> list[int]:
    """The numbers of at most ``most`` of ``count`` slices, evenly spaced."""
    if count <= most:
        return list(range(count))
    return [round((at + 0.5) * count / most - 0.5) for at in range(most)]


def _band(attribution: Tensor, length: int, width: int, draws: Draws) -> Tensor:
    """The colours [3, 1, width] of a map of a signal of this length."""
    if not attribution.numel():
        raise ValueError("attribution should have at least one value, got none")
    full = functional.interpolate(attribution[None, None], length, mode="linear")[0]
    strength = _strength(full, draws)
    # the strongest sample of each column, with its sign
    high = functional.adaptive_max_pool1d(strength, width) if length > width else _stretched(strength, width)
    low = -functional.adaptive_max_pool1d(-strength, width) if length > width else high
    strongest = torch.where(high.abs() >= low.abs(), high, low)
    # from white to pure red or blue, a little faded, so that curves stay visible
    return 0.3 + 0.7 * overlays.colour_map(strongest.clamp(-1, 1) * 0.25 + 0.5, "seismic")


def _stretched(values: Tensor, width: int) -> Tensor:
    return functional.interpolate(values[None], width, mode="nearest")[0]


def _curve(curve: Tensor, band: Tensor) -> Tensor:
    """One channel [L] as a line over its band [3, h, w]."""
    height, width = band.shape[1] * _FINE, band.shape[2] * _FINE
    low, high = float(curve.min()), float(curve.max())
    board = picture_of((band * 255).round().byte()).resize((width, height))
    pen = ImageDraw.Draw(board)
    places = torch.linspace(0, width - 1, len(curve)) if len(curve) > 1 else torch.tensor([width / 2])
    if len(curve) > 2 * width:  # lowest and highest of each column
        highest = functional.adaptive_max_pool1d(curve[None], width)[0]
        lowest = -functional.adaptive_max_pool1d(-curve[None], width)[0]
        curve = torch.stack([lowest, highest], 1).flatten()
        places = torch.arange(width).repeat_interleave(2).float()
    room = height - 2 * _PADDING * _FINE
    level = (curve - low) / ((high - low) or 1.0) if high > low else torch.full_like(curve, 0.5)
    rows = height - _PADDING * _FINE - level * room
    points = list(zip(places.tolist(), rows.tolist(), strict=True))
    pen.line([(0, height - 1), (width, height - 1)], fill=(200, 200, 200), width=_FINE)
    pen.line(points if len(points) > 1 else points * 2, fill=(20, 20, 24), width=_FINE + 1, joint="curve")
    return tensor_of(np.array(board.resize((width // _FINE, height // _FINE)))).float() / 255
