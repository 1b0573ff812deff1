"""Occlusion: what happens to a target when a window of the image is covered, for windows all over the image."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastviz import capture, checks, incremental, ops, targets
from fastviz.targets import Target

__all__ = ["OcclusionMap", "occlusion"]

_BATCH = 64
"""Images the network sees at once where nothing else is said."""


@dataclass(frozen=True, eq=False)
class OcclusionMap:
    """What :func:`occlusion` found.

    Attributes:
        attribution: [N, H, W], ``baseline − score`` averaged over the windows that cover each pixel.
        scores: [N, rows, columns], the target under each window, from top left to bottom right.
        baseline: [N], the target of the image as it is.
        stats: how it was computed: ``path`` (``"incremental"``: only what a window changes was recomputed;
            ``"dense"``: whole forward passes), ``reason`` (why it is dense), ``windows`` (an image), ``evaluations``
            (images the network would see in whole passes), ``seconds``, and what :func:`fastviz.incremental.sweep`
            tells.

    With T targets a sample there is a dimension T behind N in each.
    """

    attribution: Tensor
    scores: Tensor
    baseline: Tensor
    stats: dict[str, Any]


def occlusion(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    fill: float | Tensor = 0.0,
    batch_size: int | None = None,
    progress: bool = False,
) -> OcclusionMap:
    """How much the target falls when a window of the image is covered: large where the target comes from.

    Attribution of a pixel: the mean of S(x) − S(x with the window covered) over the windows that cover it. Zeiler,
    Fergus 2014, "Visualizing and Understanding Convolutional Networks", https://arxiv.org/abs/1311.2901; the windows
    and the mean are those of captum's ``Occlusion``. Windows begin at 0, stride, 2·stride, … until one reaches the
    border, which cuts it off if it sticks out; all channels are covered.

    Args:
        model: any module that maps ``x`` to scores [N, K] (or to anything, for targets inside the network).
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0.
        target: what to measure; None is the class with the highest score of each image as it is. See
            :data:`fastviz.Target`; ``class_probability(k)`` measures probabilities.
        window: height and width of the window, in pixels; one number for a square; None is a seventh of the image's
            sides, at least 1.
        stride: step between windows, at most their size, in pixels; None is half of the window, at least 1.
        fill: what covers: a number, a value for each channel [C], an image [C, H, W], or one an image [N, C, H, W].
        batch_size: windows the network sees at once; None is what fits into 1 GiB on the CPU and half of the free
            memory of a GPU.
        progress: show a bar, on a terminal.

    Raises:
        TypeError: ``model``, ``x``, ``target`` or another argument is of the wrong type; the model returns no tensor.
        ValueError: wrong shape or device of ``x`` or ``fill``; a window larger than the image; a stride larger than the
            window; a class, layer, channel or position that does not exist.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> occlusion(model, torch.ones(1, 1, 4, 4), target=1, window=2, stride=2).scores.shape
    torch.Size([1, 2, 2])
    """
    images = capture.input_batch(model, x)
    selection = targets.resolve(target, model)
    N, _, H, W = images.shape
    height, width = (max(1, H // 7), max(1, W // 7)) if window is None else _pair(window, "window")
    steps = (max(1, height // 2), max(1, width // 2)) if stride is None else _pair(stride, "stride")
    rows = _starts(H, height, steps[0], "H")
    columns = _starts(W, width, steps[1], "W")
    cover = _fill(fill, images)
    if batch_size is not None:
        checks.whole_number(batch_size, "batch_size", minimum=1)

    started = time.perf_counter()
    windows = len(rows) * len(columns)
    boxes = _boxes(rows, columns, (height, width)).to(images.device)
    with capture.frozen_model(model), torch.no_grad(), _bar(N * windows, progress) as advance:
        selection, baseline = _clean(model, images, selection, batch_size or _BATCH)
        if selection.layers:
            values, stats = _dense(model, images, boxes, cover, selection, batch_size or _BATCH, advance)
        else:
            values, stats = _swept(model, images, boxes, cover, selection, batch_size, advance)
        # [N * P] or [N * P, T] → [N, rows, columns] or [N, T, rows, columns]
        grid = (N, len(rows), len(columns), *baseline.shape[1:])
        scores = values.reshape(grid) if values is not None else baseline.new_zeros(grid)
        if selection.several:
            scores = scores.movedim(3, 1).contiguous()
        attribution = _spread(baseline[..., None, None] - scores, rows, columns, (height, width), (H, W))
    if images.is_cuda:
        torch.cuda.synchronize(images.device)  # else the seconds would be those of queueing the work
    stats |= {"windows": windows, "evaluations": N * (windows + 1), "seconds": time.perf_counter() - started}
    return OcclusionMap(attribution, scores, baseline, stats)


def _swept(
    model: nn.Module,
    images: Tensor,
    boxes: Tensor,
    cover: float | Tensor,
    selection: targets.Selection,
    batch_size: int | None,
    advance: Callable[[int], object],
) -> tuple[Tensor | None, dict[str, Any]]:
    """The selection's values under each window of each image, recomputing only what a window changes."""
    N, windows = len(images), len(boxes)
    if N * windows == 0:
        return None, {"path": "dense", "reason": "there is no image"}
    swept = incremental.sweep(
        model,
        images,
        boxes.repeat(N, 1),
        torch.arange(N, device=images.device).repeat_interleave(windows),
        cover,
        lambda output, number: selection.taken(number // windows, N).values(output, {}),
        batch_size=batch_size,
        advance=advance,
    )
    return swept.values, swept.stats


def _dense(
    model: nn.Module,
    images: Tensor,
    boxes: Tensor,
    cover: float | Tensor,
    selection: targets.Selection,
    batch_size: int,
    advance: Callable[[int], object],
) -> tuple[Tensor | None, dict[str, Any]]:
    """The same for a target inside of the network, whose activations a whole forward pass records."""
    N, windows = len(images), len(boxes)
    parts = []
    for start in range(0, N * windows, batch_size):
        number = torch.arange(start, min(start + batch_size, N * windows), device=images.device)
        sample = number // windows
        covered = ops.occlude(images, boxes[number % windows], sample, cover)
        output, recorded = targets.run(model, covered, selection.layers)
        parts.append(selection.taken(sample, N).values(output, recorded))
        advance(len(number))
    stats = {"path": "dense", "reason": "the target is inside of the network", "batch_size": batch_size}
    return torch.cat(parts) if parts else None, stats


# ------------------------------------------------------------------------------------------------------ windows


def _pair(value: object, argument: str) -> tuple[int, int]:
    """Height and width from one number or two, each at least 1."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2:
            raise ValueError(f"{argument} should be one number or (height, width), got {len(value)} numbers")
        first, second = value
    else:
        first = second = value
    return checks.whole_number(first, argument, minimum=1), checks.whole_number(second, argument, minimum=1)


def _starts(size: int, window: int, stride: int, side: str) -> list[int]:
    """Where windows begin along a side: captum's positions, the last of which may stick out."""
    if window > size:
        raise ValueError(f"window should be at most the image, {side} = {size} pixels, got {window}")
    if stride > window < size:
        raise ValueError(f"stride should be at most the window, {window} pixels along {side}, got {stride}")
    return [index * stride for index in range(math.ceil((size - window) / stride) + 1)]


def _boxes(rows: list[int], columns: list[int], window: tuple[int, int]) -> Tensor:
    """Windows as int64 [P, 4]: top, left, bottom, right, half open; columns run fastest. The last may stick out."""
    top, left = (each.reshape(-1) for each in torch.meshgrid(torch.tensor(rows), torch.tensor(columns), indexing="ij"))
    return torch.stack([top, left, top + window[0], left + window[1]], dim=1)


def _spread(
    fall: Tensor, rows: list[int], columns: list[int], window: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Mean of ``fall`` [..., rows, columns] over the windows that cover each pixel: [..., H, W].

    Windows stand in a grid, so the sum over those that cover a pixel is a sum over rows, then over columns: two
    products with matrices of zeros and ones, in float64.
    """
    down = _covers(rows, window[0], size[0]).to(fall.device)
    across = _covers(columns, window[1], size[1]).to(fall.device)
    total = down.T @ fall.double() @ across
    return (total / torch.outer(down.sum(0), across.sum(0))).to(fall.dtype)


def _covers(starts: list[int], window: int, size: int) -> Tensor:
    """Which windows cover which positions along a side: float64 [windows, size] of zeros and ones."""
    start, position = torch.tensor(starts)[:, None], torch.arange(size)
    return ((start <= position) & (position < start + window)).double()


# ---------------------------------------------------------------------------------------------------- evaluation


def _fill(fill: object, images: Tensor) -> float | Tensor:
    """``fill`` as ``ops.occlude`` takes it: a number, [C] or [1 or N, C, H, W]."""
    if not isinstance(fill, Tensor):
        if isinstance(fill, bool) or not isinstance(fill, (int, float)):
            raise TypeError(f"fill should be a number or a tensor, got {type(fill).__name__}")
        return float(fill)
    N, C, H, W = images.shape
    if fill.shape not in ((), (C,), (C, H, W), (N, C, H, W)):
        raise ValueError(
            f"fill should have shape [{C}], [{C}, {H}, {W}] or [{N}, {C}, {H}, {W}] for this x, got {list(fill.shape)}"
        )
    if fill.dim() and fill.device != images.device:
        raise ValueError(f"fill should be on the device of x, {images.device}, got {fill.device}")
    if not fill.dim():
        return float(fill)
    fill = fill.detach().to(images.dtype)
    return fill[None] if fill.dim() == 3 else fill


def _clean(
    model: nn.Module, images: Tensor, selection: targets.Selection, batch_size: int
) -> tuple[targets.Selection, Tensor]:
    """``selection`` with the predicted classes put in, and its values for the ``images`` as they are."""
    values, predicted = [], []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        sample = torch.arange(start, start + len(batch), device=images.device)
        output, recorded = targets.run(model, batch.clone(), selection.layers)
        if selection.predicts:
            predicted.append(targets.predicted(output))
        values.append(selection.taken(sample, len(images)).values(output, recorded))
    settled = selection.settled(torch.cat(predicted)) if predicted else selection
    return settled, torch.cat(values) if values else selection.no_values(images)


@contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[int], object]]:
    """A function to report finished windows to: it moves a bar if one is ``wanted`` and there is a terminal."""
    if not wanted:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        "occlusion", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.advance(task, done)
