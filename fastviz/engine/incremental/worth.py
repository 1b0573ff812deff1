"""Decides whether tracing a model is worthwhile for a sweep, from one pass of the model.

A trace takes longer than many sweeps. The decision is based on counts, not on timing: operations of a pass, calls to
trace, and the growth of a window's rectangle from convolution to convolution; so it is reproducible. If tracing is not
worthwhile for one sweep, its work is recorded, and the model is traced once the total is large compared with tracing.
"""

from __future__ import annotations

import math
import threading
from typing import Literal

import torch
from torch import Tensor, nn

from fastviz.engine.incremental.job import even_batches, whole_passes
from fastviz.engine.incremental.network import is_there
from fastviz.engine.incremental.work import Work, known

__all__ = ["beside_clean", "refusal", "slower", "spend", "timed"]

_RATE = {"cpu": 5e10, "cuda": 1e13}
"""Floating-point operations per second in full passes, of a CPU thread or a GPU."""

_TRACE = (0.25, 0.0025)
"""Seconds to trace a model and plan for it: fixed, and per call of a pass."""

_LOST = 0.03
"""The fraction of the time spent on a model that tracing may take if it is not worthwhile for one sweep."""

_SLOWER = 0.95
"""The measured gain below which a sweep on rectangles was not worthwhile."""

_TRIES = 2
"""How many sweeps on rectangles of one kind run before their speed is considered."""

_LEAST_WINDOWS = 16
"""The minimum number of windows to measure the speed of a sweep."""

_lock = threading.Lock()


def refusal(model: nn.Module, images: Tensor, boxes: Tensor, begun: int = 0, least: float = 1.0) -> str:
    """Why a model should not be traced for a sweep over ``boxes``; empty if it is worthwhile.

    Args:
        model: the network.
        images: [N, C, H, W], or signals or volumes.
        boxes: int64 [P, 2 · axes].
        begun: how many windows full passes can skip; a sweep on rectangles computes all, so that each call gives the
            same.
        least: a lower bound of the gain by steps on whole images.
    """
    work = known(model, images)
    if work is None or not work.calls:
        return "nothing is known of the cost of a pass"
    device = images.device.type
    rate = _RATE[device] * (torch.get_num_threads() if device == "cpu" else 1)
    trace = (_TRACE[0] + _TRACE[1] * work.calls) * rate
    gain = max(least, work.gain(tuple(_sides(boxes).tolist()), tuple(images.shape[2:])))
    dense = work.operations * len(boxes)
    saved = work.operations * (len(boxes) - begun) - dense / gain
    if gain > 1.05 and (saved >= trace or (work.spent + dense) * _LOST >= trace):
        return ""
    return (
        f"tracing would cost more than it saves: some {trace / rate:.1f} s before {dense / rate:.2f} s of whole "
        f"passes, which rectangles would shorten by a factor of {gain:.1f} or more"
    )


def slower(work: Work | None, boxes: Tensor) -> str:
    """Why a traced model should still run full passes; empty if it should not.

    The fastest time of each method is compared, because a busy machine slows either down at times.
    """
    if work is None:
        return ""
    count, seconds = work.rectangles.get(_kind(boxes), (0, math.inf))
    gain = work.whole / seconds
    if count < _TRIES or gain >= _SLOWER:
        return ""
    return f"earlier sweeps on rectangles ran at {gain:.2f} times the speed of whole passes"


def timed(work: Work | None, boxes: Tensor, seconds: float, dense_seconds: float | None) -> None:
    """Record the time of a sweep over ``boxes``, if it was long enough to measure.

    Args:
        work: the measurements of the model for these images.
        boxes: int64 [P, 4].
        seconds: per window, without preparation.
        dense_seconds: for a sweep on rectangles, the model's time for one image; None for full passes.
    """
    if work is None or len(boxes) < _LEAST_WINDOWS:
        return
    with _lock:
        if dense_seconds is None:
            work.whole = min(work.whole, seconds)
            return
        work.whole = min(work.whole, dense_seconds)
        count, least = work.rectangles.get(_kind(boxes), (0, math.inf))
        work.rectangles[_kind(boxes)] = count + 1, min(least, seconds)


def _kind(boxes: Tensor) -> tuple[int, ...]:
    """The kind of a sweep: sweeps with about as many windows of about the same size share one."""
    return *_sides(boxes).round().int().tolist(), len(boxes).bit_length()


def _sides(boxes: Tensor) -> Tensor:
    """The mean lengths of the boxes along each axis; 0 for none."""
    axes = boxes.shape[1] // 2
    return (boxes[:, axes:] - boxes[:, :axes]).double().sum(0) / max(1, len(boxes))


def spend(work: Work | None, windows: int) -> None:
    """Record full passes for this many windows."""
    if work is not None:
        with _lock:
            work.spent += work.operations * windows


def beside_clean(
    model: nn.Module,
    images: Tensor,
    boxes: Tensor,
    batch_size: int | None = None,
    trace: Literal["auto", "always", "never"] = "auto",
) -> int:
    """How many of the first windows to add to the pass over the clean images, if a sweep starts with full passes.

    A separate pass for one image costs as much as several more images in a batch. The number is 0 if there are steps,
    or if tracing is already known to be worthwhile.

    Args:
        model: the network.
        images: [N, C, H, W], or signals or volumes.
        boxes: all windows, int64 [P, 2 · axes].
        batch_size: images in a pass; None is :func:`fastviz.engine.incremental.job.whole_passes`.
        trace: as in :func:`fastviz.engine.incremental.sweep`.
    """
    work = known(model, images)
    if trace == "always" or not len(images):
        return 0
    if trace == "auto":
        traced = is_there(model, images)
        if slower(work, boxes) == "" if traced else work is not None and not refusal(model, images, boxes):
            return 0
    even = even_batches(len(images) + len(boxes), batch_size or whole_passes(model, images))
    return min(len(boxes), max(0, even - len(images)))
