"""Sheets of patches: cropped from their images, with guided backprop, one sheet per channel or layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastviz import images, targets
from fastviz._util import checks
from fastviz._util.batch_size import images_at_once
from fastviz._util.progress import bar
from fastviz.engine.gradients.input_gradients import input_gradients
from fastviz.execution.inputs import input_batch
from fastviz.execution.rectifiers import RectifierWarning
from fastviz.images import captions, tensors
from fastviz.images.notebook import NotebookResult
from fastviz.images.streams import Source, Stream
from fastviz.methods.inspection.patches import Patches, open_stream

__all__ = ["PatchPictures", "patch_pictures", "patch_sheet"]

_OUTSIDE = 0.5
"""Brightness of the part of a receptive field beyond the image border."""
_EMPTY = 1.0
"""Brightness of missing patches, where a channel has fewer than k."""
_CELL, _LARGE_CELL, _SHEET_WIDTH = 64, 144, 1700
_SIGNAL, _SLICES = (48, 220), 3
"""Height and width of a signal's channel, and number of a volume's slices, in the picture of a patch."""
# Otherwise one extreme pixel would leave the rest of a gradient grey.
_PERCENTILE = 99.0


@dataclass(frozen=True, eq=False, repr=False)
class PatchPictures(NotebookResult):
    """The patches of some channels as pictures, float32 on the CPU in 0 to 1.

    h and w are the height and width of the layer's receptive field, or of the image if that is smaller. For signals and
    volumes they are those of a drawing: curves, or slices side by side, in the colours of guided backprop.

    Attributes:
        found: the positions.
        channels: the n channels shown.
        photos: [n, k, 3, h, w], the receptive field of each unit, middle grey beyond the border of the image; white for
            missing patches. For signals and volumes drawings, with 0 beyond the border, as in convolutions.
        guided: the same for guided backprop from each unit, scaled for each patch so that the 99th percentile of the
            magnitudes is black or white and zero is middle grey; None if not requested, and for signals and volumes,
            whose drawings include it: red where a higher value increases the activation, blue where a lower one does.

    >>> from fastviz.methods.inspection.patches import patches
    >>> model, x = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU()), torch.rand(2, 3, 16, 16)
    >>> patch_pictures(model, patches(model, x, "1", k=2), x, guided=False).photos.shape
    torch.Size([4, 2, 3, 5, 5])
    """

    found: Patches
    channels: tuple[int, ...]
    photos: Tensor
    guided: Tensor | None

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        captions = [
            f"channel {channel}: {value:.3g}"
            for channel in self.channels
            for value in self.found.values[channel].tolist()
        ]
        return list(zip(captions, self.photos.flatten(0, 1), strict=True))


def patch_pictures(
    model: nn.Module,
    found: Patches,
    source: Source | Stream,
    channels: int | Sequence[int] | None = None,
    *,
    guided: bool = True,
    batch_size: int | None = None,
    progress: bool = False,
) -> PatchPictures:
    """Pictures of the patches that :func:`fastviz.patches` found, and of what in them activates the units.

    Each image is read again. Guided backprop (Springenberg et al. 2015, https://arxiv.org/abs/1412.6806) runs on
    the part of the image that the unit depends on, see :mod:`fastviz.engine.gradients.unit_gradients`.

    Args:
        model: the network of ``found``.
        found: one entry of what :func:`fastviz.patches` returned.
        source: the images of that call, in the same order; not a dataset that only iterates.
        channels: one channel or several; None for all (guided backprop then runs C·k times).
        guided: whether to compute guided backprop.
        batch_size: images in a forward and backward pass; None is 32.
        progress: show a progress bar on a terminal.

    Returns:
        A :class:`PatchPictures` with ``photos`` and, if requested, ``guided``, each [channels, k, 3, h, w] in 0 to 1.

    Raises:
        TypeError, ValueError: a channel that does not exist; images that cannot be read again.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU())
    >>> from fastviz.methods.inspection.patches import patches
    >>> x = torch.rand(2, 3, 16, 16)
    >>> patch_pictures(model, patches(model, x, "1", k=2), x, channels=[3, 0]).photos.shape
    torch.Size([2, 2, 3, 5, 5])
    """
    checks.instance(found, "found", Patches)
    chosen = _channels(channels, len(found.values))
    at_once = images_at_once(batch_size)
    stream = open_stream(model, source, at_once)
    corners, size = _windows(found)
    k = found.values.shape[1]
    sides = size if len(size) == 2 else (1, 1)
    photos = torch.full((len(chosen), k, 3, *sides), _EMPTY)
    maps = torch.full_like(photos, _EMPTY) if guided and len(size) == 2 else None
    # (image, index of the channel, rank), sorted by image so that each is read once
    hits = sorted(
        (int(found.images[channel, rank]), at, rank)
        for at, channel in enumerate(chosen)
        for rank in range(k)
        if found.images[channel, rank] >= 0
    )
    with bar(progress, len(hits), unit="patches") as advance:
        for part, x in _read(hits, stream, at_once):
            at, rank = (torch.tensor([hit[column] for hit in part]) for column in (1, 2))
            channel = torch.tensor(chosen)[at]
            where = corners[channel, rank]
            seen = None
            if guided:
                seen = _cut(_guided(model, x, found, channel, rank).float().cpu(), where, size, 0.0)
            if len(size) != 2:
                drawn = _drawn(_cut(x.float().cpu(), where, size, 0.0), seen)
                if photos.shape[2:] != drawn.shape[1:]:
                    photos = drawn.new_full((len(chosen), k, *drawn.shape[1:]), _EMPTY)
                photos[at, rank] = drawn
            else:
                shown = images.restore(x.float().cpu(), stream.preprocessing)
                photos[at, rank] = _cut(shown, where, size, _OUTSIDE)
            if maps is not None and seen is not None:
                maps[at, rank] = _grey(seen)
            advance(len(part))
    return PatchPictures(found, chosen, photos, maps)


def patch_sheet(shown: PatchPictures, channel: int | None = None, *, columns: int | None = None) -> Tensor:
    """One picture of many patches, [3, H, W] in 0 to 1.

    For one ``channel``: its patches in a row, strongest first, each with its activation above and guided backprop
    below. For None: all channels of ``shown`` in blocks, with the patches row by row, strongest at the top left, guided
    backprop to the right, and above them the channel and its highest and lowest activation; ``columns`` blocks side by
    side, or as many as fit into 1700 pixels.

    Args:
        shown: from :func:`patch_pictures`.
        channel: one of ``shown.channels``; None is all.
        columns: blocks side by side, if all channels are shown; None is as many as fit.

    Returns:
        float32 [3, H, W] in 0 to 1, on the CPU.

    Raises:
        ValueError: ``shown`` does not hold the channel; ``columns`` is below 1.

    >>> from fastviz.methods.inspection.patches import patches
    >>> model, x = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU()), torch.rand(2, 3, 16, 16)
    >>> sheet = patch_sheet(patch_pictures(model, patches(model, x, "1", k=2), x))
    >>> sheet.shape[0], bool(sheet.min() >= 0)
    (3, True)
    """
    checks.instance(shown, "shown", PatchPictures)
    layer = shown.found.layer
    if channel is not None:
        if channel not in shown.channels:
            raise ValueError(f"channel should be one of {', '.join(map(str, shown.channels))}, got {channel}")
        return _titled(f"{layer}, channel {channel}", _row(shown, shown.channels.index(channel)))
    blocks = [_block(shown, at) for at in range(len(shown.channels))]
    fit = (
        _SHEET_WIDTH // blocks[0][1].shape[2] if columns is None else checks.whole_number(columns, "columns", minimum=1)
    )
    across = max(1, min(len(blocks), fit))
    height = blocks[0][1].shape[1]
    rows = [captions.panels(blocks[at : at + across], height=height) for at in range(0, len(blocks), across)]
    return _titled(f"{layer}: channels by number, with their highest and lowest activation", _stacked(rows))


# -------------------------------------------------------------------------------------------------------- cutting


def _channels(channels: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    if channels is None:
        return tuple(range(count))
    given = [channels] if isinstance(channels, int) else list(channels)
    if not given:
        raise ValueError("channels should hold at least one channel, got none")
    for channel in given:
        if checks.whole_number(channel, "channels", minimum=0) >= count:
            raise ValueError(f"channels should be from 0 to {count - 1}, got {channel}")
    return tuple(dict.fromkeys(given))


def _windows(found: Patches) -> tuple[Tensor, tuple[int, ...]]:
    """The first corner (top and left) of each window to show, [C, k, axes], and the size of all windows.

    A receptive field larger than the image is shown as the whole image; the rest would be grey.
    """
    fields, inputs = found.fields.cpu(), found.input_size
    field = found.receptive_field
    sizes = inputs if field is None else field.size
    whole = [side >= given for side, given in zip(sizes, inputs, strict=True)]
    corners = fields[..., : len(inputs)].masked_fill(torch.tensor(whole), 0)
    return corners, tuple(min(side, given) for side, given in zip(sizes, inputs, strict=True))


def _cut(x: Tensor, corners: Tensor, size: tuple[int, ...], outside: float) -> Tensor:
    """The windows [n, C, *size] of ``x`` [n, C, ...] at the ``corners`` [n, axes]; ``outside`` beyond the border."""
    around = functional.pad(x, [side for side in reversed(size) for _ in range(2)], value=outside)
    windows = []
    for picture, corner in zip(around, corners.tolist(), strict=True):
        inside = (slice(at + side, at + 2 * side) for at, side in zip(corner, size, strict=True))
        windows.append(picture[(slice(None), *inside)])
    return torch.stack(windows)


def _drawn(windows: Tensor, gradients: Tensor | None) -> Tensor:
    """Windows of signals [n, C, l] or volumes [n, C, d, h, w] as pictures [n, 3, H, W], coloured by their gradients.

    The channels of a gradient are reduced to the value with the largest magnitude, with its sign.
    """
    drawn = []
    for at, window in enumerate(windows):
        band = None
        if gradients is not None:
            band = gradients[at].gather(0, gradients[at].abs().argmax(0, keepdim=True))[0]
        if window.dim() == 2:
            drawn.append(images.draw_signal(window, band, width=_SIGNAL[1], height=_SIGNAL[0]))
        else:
            drawn.append(images.draw_volume(window, band, slices=_SLICES, columns=min(_SLICES, window.shape[1])))
    return torch.stack(drawn)


def _read(
    hits: Sequence[tuple[int, int, int]], stream: Stream, batch_size: int
) -> Iterator[tuple[Sequence[tuple[int, int, int]], Tensor]]:
    """Batches of ``hits``, with the image of each."""
    kept: dict[int, Tensor] = {}
    for start in range(0, len(hits), batch_size):
        part = hits[start : start + batch_size]
        numbers = sorted({number for number, _, _ in part})
        kept = {number: kept[number] if number in kept else stream.image(number) for number in numbers}
        yield part, torch.stack([kept[number] for number, _, _ in part])


def _guided(model: nn.Module, x: Tensor, found: Patches, channel: Tensor, rank: Tensor) -> Tensor:
    places = found.positions.cpu()[channel, rank]
    unit = targets.neuron(found.layer, channel, tuple(places.unbind(1)))
    with warnings.catch_warnings():
        # before the first rectifier, guided backprop is the plain gradient, so no warning is needed
        warnings.filterwarnings("ignore", "the model has no rectifier", RectifierWarning)
        return input_gradients(
            model, input_batch(model, x, axes=(1, 2, 3)), targets.resolve(unit, model), rule="guided"
        )


def _grey(gradient: Tensor) -> Tensor:
    """Gradients [n, C, h, w] as pictures [n, 3, h, w]."""
    scaled = tensors.normalize(gradient, symmetric=True, percentile=_PERCENTILE, dims=3)
    return scaled if scaled.shape[1] == 3 else scaled.mean(1, keepdim=True).expand(-1, 3, -1, -1)


# -------------------------------------------------------------------------------------------------------- drawing


def _row(shown: PatchPictures, at: int) -> Tensor:
    """The patches of one channel side by side."""
    values = shown.found.values[shown.channels[at]].tolist()
    parts = [_fitted(shown, shown.photos[at], _LARGE_CELL)]
    if shown.guided is not None:
        parts.append(_fitted(shown, shown.guided[at], _LARGE_CELL))
    gap = torch.ones(*parts[0].shape[:2], 6, parts[0].shape[3])
    column = torch.cat([parts[0], *(piece for part in parts[1:] for piece in (gap, part))], dim=2)
    cells = [("" if value == -torch.inf else _words(value), one) for value, one in zip(values, column, strict=True)]
    across = len(cells) if _are_images(shown) else max(1, _SHEET_WIDTH // column.shape[3])
    rows = [captions.panels(cells[at : at + across], height=column.shape[2]) for at in range(0, len(cells), across)]
    return _stacked(rows)


def _block(shown: PatchPictures, at: int) -> tuple[str, Tensor]:
    """The caption of one channel, and its patches as a square next to guided backprop."""
    channel = shown.channels[at]
    values = [value for value in shown.found.values[channel].tolist() if value > -torch.inf]
    words = f"{channel}   " + (f"{_words(values[0])} to {_words(values[-1])}" if values else "no activation")
    parts = [tensors.grid(_fitted(shown, shown.photos[at], _CELL), padding=1)]
    if shown.guided is not None:
        parts.append(tensors.grid(_fitted(shown, shown.guided[at], _CELL), padding=1))
    return words, torch.cat(parts, dim=2)


def _words(value: float) -> str:
    """An activation with few digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _are_images(shown: PatchPictures) -> bool:
    return len(shown.found.input_size) == 2


def _fitted(shown: PatchPictures, patches: Tensor, cell: int) -> Tensor:
    """Patches [n, 3, h, w] with their longer side at ``cell`` pixels; if enlarged a lot, single pixels stay visible.

    Drawings of signals and volumes keep their size.
    """
    if not _are_images(shown):
        return patches
    scale = cell / max(patches.shape[2:])
    height, width = (max(1, round(side * scale)) for side in patches.shape[2:])
    if scale > 4:
        return functional.interpolate(patches, (height, width), mode="nearest-exact")
    return tensors.resize(patches, height, width, "bicubic")


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Pictures one below the other, padded to the width of the first, which is the widest."""
    width = rows[0].shape[2]
    return torch.cat([functional.pad(row, (0, width - row.shape[2]), value=1.0) for row in rows], dim=1)


def _titled(title: str, body: Tensor) -> Tensor:
    return captions.panels([(title, body)], height=body.shape[1])
