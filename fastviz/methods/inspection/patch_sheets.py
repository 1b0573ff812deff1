"""Patches to look at: cut out of their images, with what guided backprop sees in them, a channel or a layer a sheet."""

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
"""Brightness of what a unit sees beyond the border of its image."""
_EMPTY = 1.0
"""Brightness where a channel has fewer than k places."""
_CELL, _LARGE_CELL, _SHEET_WIDTH = 64, 144, 1700
# One bright pixel would otherwise leave the rest of a gradient grey.
_PERCENTILE = 99.0


@dataclass(frozen=True, eq=False, repr=False)
class PatchPictures(NotebookResult):
    """The patches of some channels as pictures, float32 on the CPU in 0 to 1.

    h and w are the height and width of the layer's receptive field, or of the image where that is smaller.

    Attributes:
        found: the places.
        channels: the channels shown, n of them.
        photos: [n, k, 3, h, w], what each unit sees, middle grey beyond the border of the image; white where there is
            no place.
        guided: the same of guided backprop from each unit, scaled for each patch so that the 99th percentile of the
            magnitudes is black or white, and zero middle grey; None if not wanted.

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
    """What the units that :func:`fastviz.patches` found see of their images, and what in it excites them.

    Each image is read again once. Guided backprop (Springenberg et al. 2015, https://arxiv.org/abs/1412.6806) runs on
    the part of the image that the unit depends on, see :mod:`fastviz.engine.gradients.unit_gradients`.

    Args:
        model: the network of ``found``.
        found: one entry of what :func:`fastviz.patches` returned.
        source: the images of that call, the same in the same order; no dataset that only iterates.
        channels: one channel or several; None for all (guided backprop runs C·k times then).
        guided: whether to compute the pictures of guided backprop.
        batch_size: images in a forward and backward pass; None is 32.
        progress: show a bar, on a terminal.

    Returns:
        A :class:`PatchPictures` with ``photos`` and, if wanted, ``guided``, each [channels, k, 3, h, w] in 0 to 1.

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
    photos = torch.full((len(chosen), k, 3, *size), _EMPTY)
    maps = torch.full_like(photos, _EMPTY) if guided else None
    # (number of the image, place on the sheet, rank): image by image, so that each is read once
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
            shown = images.restore(x.float().cpu(), stream.preprocessing)
            photos[at, rank] = _cut(shown, where, size, _OUTSIDE)
            if maps is not None:
                gradient = _guided(model, x, found, channel, rank)
                maps[at, rank] = _grey(_cut(gradient.float().cpu(), where, size, 0.0))
            advance(len(part))
    return PatchPictures(found, chosen, photos, maps)


def patch_sheet(shown: PatchPictures, channel: int | None = None, *, columns: int | None = None) -> Tensor:
    """One picture of many patches, [3, H, W] in 0 to 1.

    For one ``channel`` its patches in a row, strongest first, each with its activation above and guided backprop below.
    For None all channels that ``shown`` holds, in blocks: the patches row by row, strongest at the top left, guided
    backprop to the right, above them the number of the channel and its highest and lowest activation; ``columns`` of
    them side by side, or as many as fit into 1700 pixels.

    Args:
        shown: from :func:`patch_pictures`.
        channel: one of ``shown.channels``; None is all.
        columns: blocks side by side, where all channels are shown; None is as many as fit.

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
    width = rows[0].shape[2]
    body = torch.cat([functional.pad(row, (0, width - row.shape[2]), value=1.0) for row in rows], dim=1)
    return _titled(f"{layer}: channels by number, with their highest and lowest activation", body)


# -------------------------------------------------------------------------------------------------------- cutting


def _channels(channels: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    if channels is None:
        return tuple(range(count))
    given = [channels] if isinstance(channels, int) else list(channels)
    if not given:
        raise ValueError("channels should hold at least one channel, got none")
    for channel in given:
        if checks.whole_number(channel, "channels", minimum=0) >= count:
            raise ValueError(f"channels should be below {count}, the number there is, got {channel}")
    return tuple(dict.fromkeys(given))


def _windows(found: Patches) -> tuple[Tensor, tuple[int, int]]:
    """Top and left of the window to show of each place, [C, k, 2], and the height and width of all.

    A field larger than the image is shown as the whole image: the rest would be grey.
    """
    fields = found.fields.cpu()
    field = found.receptive_field
    sizes = found.input_size if field is None else field.size
    whole = [sizes[axis] >= found.input_size[axis] for axis in (0, 1)]
    corners = fields[..., :2].masked_fill(torch.tensor(whole), 0)
    height, width = (min(sizes[axis], found.input_size[axis]) for axis in (0, 1))
    return corners, (height, width)


def _cut(x: Tensor, corners: Tensor, size: tuple[int, int], outside: float) -> Tensor:
    """The windows [n, C, h, w] of ``x`` [n, C, H, W] from ``corners`` [n, 2] on, ``outside`` beyond the border."""
    height, width = size
    around = functional.pad(x, (width, width, height, height), value=outside)
    windows = [
        picture[:, top + height : top + 2 * height, left + width : left + 2 * width]
        for picture, (top, left) in zip(around, corners.tolist(), strict=True)
    ]
    return torch.stack(windows)


def _read(
    hits: Sequence[tuple[int, int, int]], stream: Stream, batch_size: int
) -> Iterator[tuple[Sequence[tuple[int, int, int]], Tensor]]:
    """``hits``, a batch at a time, with the image of each."""
    kept: dict[int, Tensor] = {}
    for start in range(0, len(hits), batch_size):
        part = hits[start : start + batch_size]
        numbers = sorted({number for number, _, _ in part})
        kept = {number: kept[number] if number in kept else stream.image(number) for number in numbers}
        yield part, torch.stack([kept[number] for number, _, _ in part])


def _guided(model: nn.Module, x: Tensor, found: Patches, channel: Tensor, rank: Tensor) -> Tensor:
    places = found.positions.cpu()[channel, rank]
    unit = targets.neuron(found.layer, channel, (places[:, 0], places[:, 1]))
    with warnings.catch_warnings():
        # before the first rectifier guided backprop is the gradient, as it should be
        warnings.filterwarnings("ignore", "the model has no rectifier", RectifierWarning)
        return input_gradients(model, input_batch(model, x), targets.resolve(unit, model), rule="guided")


def _grey(gradient: Tensor) -> Tensor:
    """Gradients [n, C, h, w] as pictures [n, 3, h, w]."""
    scaled = tensors.normalize(gradient, symmetric=True, percentile=_PERCENTILE, dims=3)
    return scaled if scaled.shape[1] == 3 else scaled.mean(1, keepdim=True).expand(-1, 3, -1, -1)


# -------------------------------------------------------------------------------------------------------- drawing


def _row(shown: PatchPictures, at: int) -> Tensor:
    """The patches of one channel side by side."""
    values = shown.found.values[shown.channels[at]].tolist()
    parts = [_fitted(shown.photos[at], _LARGE_CELL)]
    if shown.guided is not None:
        parts.append(_fitted(shown.guided[at], _LARGE_CELL))
    gap = torch.ones(*parts[0].shape[:2], 6, parts[0].shape[3])
    column = torch.cat([parts[0], *(piece for part in parts[1:] for piece in (gap, part))], dim=2)
    return captions.panels(
        [("" if value == -torch.inf else _words(value), one) for value, one in zip(values, column, strict=True)],
        height=column.shape[2],
    )


def _block(shown: PatchPictures, at: int) -> tuple[str, Tensor]:
    """The patches of one channel as a square, guided backprop beside them, and their caption."""
    channel = shown.channels[at]
    values = [value for value in shown.found.values[channel].tolist() if value > -torch.inf]
    words = f"{channel}   " + (f"{_words(values[0])} to {_words(values[-1])}" if values else "no activation")
    parts = [tensors.grid(_fitted(shown.photos[at], _CELL), padding=1)]
    if shown.guided is not None:
        parts.append(tensors.grid(_fitted(shown.guided[at], _CELL), padding=1))
    return words, torch.cat(parts, dim=2)


def _words(value: float) -> str:
    """An activation in few digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _fitted(patches: Tensor, cell: int) -> Tensor:
    """Patches [n, 3, h, w] with their longer side at ``cell`` pixels; far enlarged, single pixels stay visible."""
    scale = cell / max(patches.shape[2:])
    height, width = (max(1, round(side * scale)) for side in patches.shape[2:])
    if scale > 4:
        return functional.interpolate(patches, (height, width), mode="nearest-exact")
    return tensors.resize(patches, height, width, "bicubic")


def _titled(title: str, body: Tensor) -> Tensor:
    return captions.panels([(title, body)], height=body.shape[1])
