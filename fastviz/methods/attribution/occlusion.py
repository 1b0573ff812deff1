"""Occlusion: the change of a target when a window of the image is covered, for windows all over the image.

Signals and volumes are covered in the same way, along their one or three axes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastviz import ops, targets
from fastviz._util import checks
from fastviz._util.progress import bar
from fastviz.engine import incremental
from fastviz.engine.incremental.window_grid import Fill, filling, grid
from fastviz.execution.batches import Batches
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.exported import of_any_batch
from fastviz.execution.full_precision import full_float32
from fastviz.execution.inputs import input_batch
from fastviz.execution.precision import Precision, checked_precision
from fastviz.images import notebook
from fastviz.methods.attribution.first_pass import FirstPass, first_pass
from fastviz.targets.selection import Target

__all__ = ["OcclusionMap", "occlusion"]

_BATCH = {"cpu": 8, "cuda": 64}
"""The default number of images in a pass; on a CPU as many as fit its caches."""


@dataclass(frozen=True, eq=False, repr=False)
class OcclusionMap(notebook.NotebookResult):
    """The result of :func:`occlusion`.

    Attributes:
        attribution: [N, H, W], ``baseline − score`` averaged over the windows that cover each pixel; for signals [N,
            L], for volumes [N, D, H, W].
        scores: [N, rows, columns], the target's value with each window covered, from top left to bottom right; for
            signals [N, windows], for volumes [N, slices, rows, columns].
        baseline: [N], the target's value for the unchanged image.
        classes: int64, in the shape of one target's scores, the predicted class with each window covered (the first of
            equal ones); None unless requested.
        stats: how it was computed: ``path`` (``"incremental"``: only what a window changes was recomputed; ``"dense"``:
            full forward passes), ``reason`` (why it is dense), ``windows`` (per image), ``evaluations`` (images that
            full passes would take), ``seconds``, in approximate modes ``error``, and the entries of
            :func:`fastviz.engine.incremental.sweep`.

    With T targets per sample, the first three have a dimension T after N.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> found = occlusion(model, torch.ones(1, 1, 4, 4), target=1, window=2, stride=2)
    >>> found.attribution.shape, found.scores.shape, found.stats["windows"]
    (torch.Size([1, 4, 4]), torch.Size([1, 2, 2]), 4)
    """

    attribution: Tensor
    scores: Tensor
    baseline: Tensor
    stats: dict[str, Any]
    classes: Tensor | None = None

    def shown(self) -> list[tuple[str, Tensor]]:
        """See :class:`fastviz.images.notebook.NotebookResult`."""
        if self.scores.dim() - self.baseline.dim() != 2:  # maps of signals and volumes are drawn elsewhere
            return []
        return notebook.signed_maps(self.attribution, "baseline", self.baseline)


def occlusion(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    window: int | tuple[int, ...] | None = None,
    stride: int | tuple[int, ...] | None = None,
    centred: bool = False,
    region: Sequence[int] | None = None,
    fill: Fill = 0.0,
    classes: bool = False,
    precision: Precision = "model",
    growth_cap: float | None = None,
    drill_down: float | None = None,
    memory: int | None = None,
    batch_size: int | None = None,
    trace: Literal["auto", "always", "never"] = "auto",
    progress: bool = False,
) -> OcclusionMap:
    """The decrease of the target when a window of the image is covered: large where the evidence for it lies.

    Attribution of a pixel: the mean of S(x) − S(x with the window covered) over the windows that cover it. Zeiler,
    Fergus 2014, "Visualizing and Understanding Convolutional Networks", https://arxiv.org/abs/1311.2901; the windows
    and the mean are those of captum's ``Occlusion``. Windows start at 0, stride, 2·stride, … until one reaches the
    border, where it is cropped; all channels are covered. If the model allows it and there is enough work, only what a
    window changes is recomputed, exactly: see :func:`fastviz.engine.incremental.sweep`. Each window gets the score of a
    separate pass: the images of a batch do not affect each other.

    Args:
        model: any module that maps ``x`` to scores [N, K] (or to anything, for targets inside the network).
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0. Or signals [N, C, L], or volumes
            [N, C, D, H, W].
        target: what to measure; None is the predicted class of each unchanged image. See :data:`fastviz.Target`;
            ``class_probability(k)`` measures probabilities.
        window: height and width of the window, in pixels; one number for a square; None is a seventh of the image's
            sides, at least 1. For volumes depth, height and width; for signals the length.
        stride: step between windows, in pixels, at most their size; None is half of the window, at least 1.
        centred: instead centre windows on the pixels 0, stride, 2·stride, …, cropped at every border; with stride 1,
            ``scores`` is then a map [N, H, W] of the score with the window centred on each pixel.
        region: top, left, bottom, right of the part of the image to cover, half-open, in pixels; the map has the size
            of that part; None is the whole image. For signals start and stop; for volumes front, top, left, back,
            bottom and right.
        fill: the replacement for covered values: a number, a value for each channel [C], an image [C, H, W] (or signal
            or volume), one per input [N, C, H, W], ``"mean"`` (of each channel of each image) or ``"blur"`` (the image
            blurred by a Gaussian whose standard deviation is half of the window).
        classes: also return the predicted class with each window covered.
        precision: ``"bfloat16"`` computes in bfloat16; approximate.
        growth_cap: the maximum side of the changed part of a map, as a fraction of the map, above 0; changes beyond it
            are ignored; approximate.
        drill_down: the fraction, 0 to 1, of the grid that is computed at every window, where the target falls most;
            elsewhere only every fourth window of every fourth row is computed and the others are interpolated;
            approximate.
        memory: the maximum bytes that the sweep may hold; None is 1 GiB on the CPU and half of the free memory of a
            GPU.
        batch_size: windows in a pass; None is the fastest number that fits into ``memory``. A network that may mix the
            images of a batch always gets one at a time; ``stats["alone"]`` says why.
        trace: ``"auto"`` traces the model for incremental sweeps, which can take seconds, if that is faster for this
            call or over many calls of the same model; ``"always"`` traces in any case; ``"never"`` runs full passes.
        progress: show a progress bar on a terminal.

    In approximate modes ``stats["error"]`` holds the ``largest`` and ``mean`` absolute difference between the scores
    and those of the model itself, for ``windows`` random windows (with a fixed seed).

    Returns:
        An :class:`OcclusionMap` with ``attribution`` [N, H, W] ([N, T, H, W] for T targets per sample), signed, in the
        units of the target, and with the scores and statistics, on the device of ``x``.

    Raises:
        TypeError: ``model``, ``x``, ``target`` or another argument is of the wrong type; the model does not return a
            tensor.
        ValueError: wrong shape or device of ``x`` or ``fill``; a window larger than the image; a stride larger than the
            window; a class, layer, channel or position that does not exist; an approximate mode for a target inside the
            network; ``classes`` with ``drill_down``.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> occlusion(model, torch.ones(1, 1, 4, 4), target=1, window=2, stride=2).scores.shape
    torch.Size([1, 2, 2])
    """
    started = time.perf_counter()
    images = input_batch(model, x, axes=(1, 2, 3))
    selection = targets.resolve(target, model)
    model = of_any_batch(model)
    windows = grid(tuple(images.shape[2:]), window, stride, centred=centred, region=region)
    _check_drill_down(drill_down, classes, len(windows.shape))
    options = _options(precision, growth_cap, memory, batch_size, trace)
    batches = Batches(model)
    each = math.prod(windows.shape)
    with (
        frozen_model(model),
        torch.no_grad(),
        full_float32(images.device),
        bar(progress, len(images) * each, text="occlusion") as advance,
    ):
        at_once = batch_size or (
            _BATCH[images.device.type] if images.dim() < 5 else incremental.whole_passes(model, images)
        )
        covering = filling(fill, images, windows.window)
        exact = precision == "model" and growth_cap is None and drill_down is None and not selection.layers
        along = windows.boxes if exact else windows.boxes[:0]
        first = first_pass(batches, images, selection, along, covering, options, at_once)
        selection, baseline = first.selection, first.values
        covered = _CoveredImages(batches, images, first, windows.boxes, covering, selection, advance, classes)
        values, stats = covered.values(windows.shape, baseline, drill_down, options, at_once)
        # [N * P] or [N * P, T] → [N, *grid] or [N, T, *grid]
        scores = values.reshape(len(images), *windows.shape, *baseline.shape[1:])
        if selection.several:
            scores = scores.movedim(-1, 1).contiguous()
        attribution = windows.spread(baseline[(..., *(None for _ in windows.shape))] - scores)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)  # otherwise the time would only cover queueing the work
    if first.missing is not None:
        attribution[first.missing.to(attribution.device)] = 0.0
    stats |= {
        "windows": each,
        "evaluations": len(images) * (each + 1),
        "seconds": time.perf_counter() - started,
    }
    winners = covered.winners.reshape(len(images), *windows.shape) if classes else None
    return OcclusionMap(attribution, scores, baseline, stats, winners)


def _check_drill_down(drill_down: float | None, classes: bool, axes: int) -> None:
    if drill_down is None:
        return
    checks.number(drill_down, "drill_down", low=0, high=1)
    if axes == 3:
        raise ValueError("drill_down should be None for volumes, since it refines rows and columns of windows")
    if classes:
        raise ValueError("classes needs every window, but drill_down leaves windows out; choose one of them")


def _options(
    precision: Precision, growth_cap: float | None, memory: int | None, batch_size: int | None, trace: str
) -> dict[str, Any]:
    """The options of a sweep, checked where they also apply without one."""
    for number, argument in ((batch_size, "batch_size"), (memory, "memory")):
        if number is not None:
            checks.whole_number(number, argument, minimum=1)
    checks.one_of(trace, "trace", ("auto", "always", "never"))
    return {
        **{"precision": checked_precision(precision), "growth_cap": growth_cap, "memory": memory},
        **{"batch_size": batch_size, "trace": trace},
    }


@dataclass(eq=False)
class _CoveredImages:
    """Evaluates the images with each window covered; windows are numbered image by image.

    Attributes:
        batches: of the model, which the caller has put into evaluation mode.
        images: [N, C, H, W], or signals or volumes.
        outputs: the model's outputs for the unchanged images.
        boxes: int64 [P, 2 · axes], on the CPU, where sweeps are planned.
        fill: the ``fill`` of ``ops.occlude``.
        selection: what is measured, for the N images.
        advance: called with the number of finished windows.
        classes: whether to record the predicted class with each window covered.
        winners: int64 [N * P], these classes; empty if not requested.
    """

    batches: Batches
    images: Tensor
    outputs: FirstPass
    boxes: Tensor
    fill: float | Tensor
    selection: targets.Selection
    advance: Callable[[int], object]
    classes: bool
    winners: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.winners = torch.zeros(self.count if self.classes else 0, dtype=torch.int64, device=self.images.device)

    @property
    def count(self) -> int:
        """N · P."""
        return len(self.images) * len(self.boxes)

    @property
    def numbers(self) -> Tensor:
        """The numbers of all windows, int64 [N * P], on the CPU."""
        return torch.arange(self.count)

    def values(
        self,
        shape: tuple[int, ...],
        baseline: Tensor,
        drill_down: float | None,
        options: dict[str, Any],
        batch_size: int,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The values for all windows, [N * P] or [N * P, T], and how they were computed."""
        if not self.count:
            return baseline.new_zeros(0, *baseline.shape[1:]), _dense_stats("there is no image")
        if self.selection.layers:
            if options["precision"] != "model" or options["growth_cap"] is not None or drill_down is not None:
                raise ValueError("precision, growth_cap and drill_down need a target that is a score of the model")
            return self.dense(batch_size)
        if drill_down is None:
            return self.swept(self.numbers, options)
        return self.drilled(shape, baseline, drill_down, options)

    def measured(self, output: Any, number: Tensor, recorded: targets.Activations | None = None) -> Tensor:
        """The selection's values in the model's ``output`` for the windows with these numbers, int64 [B]."""
        if self.classes:
            self.winners[number] = targets.predicted(output)
        sample = number // len(self.boxes)
        return self.selection.for_samples(sample, len(self.images)).values(output, recorded or {})

    def swept(self, number: Tensor, options: dict[str, Any], *, check: bool = True) -> tuple[Tensor, dict[str, Any]]:
        """The values for some windows, with numbers on the CPU, recomputing only what a window changes."""
        there = number.to(self.images.device)
        read = None if self.classes else self.selection.scores_read
        part = None
        if not self.classes:
            part = targets.part_of_output(self.batches.model, self.selection, self.outputs.example)

        def values(output: Any, at: Tensor) -> Tensor:
            if part is None:
                return self.measured(output, there[at])
            return self.selection.for_samples(there[at] // len(self.boxes), len(self.images)).of_parts(part[1](output))

        swept = incremental.sweep(
            self.batches.model if part is None else part[0],
            self.images,
            self.boxes[number % len(self.boxes)],
            there // len(self.boxes),
            self.fill,
            values,
            outputs=None if read is None else sorted(read),
            advance=self.advance,
            check=check,
            clean=self.outputs.whole if part is None else None,
            begun=self.outputs.begun if part is None else None,
            batches=self.batches if part is None else None,
            **options,
        )
        return swept.values, swept.stats

    def drilled(
        self, shape: tuple[int, ...], baseline: Tensor, fraction: float, options: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """The values for all windows, coarse to fine."""
        stats: dict[str, Any] = {}

        def evaluate(number: Tensor) -> Tensor:
            values, stats["last"] = self.swept(number, options, check=False)
            return values

        rows, columns = (1, *shape)[-2:]  # a signal has one row of windows
        values, computed = incremental.drill_down(evaluate, rows, columns, baseline, fraction=fraction)
        left_out = computed.numel() - int(computed.sum())
        self.advance(left_out)
        sample = (self.numbers // len(self.boxes)).to(self.images.device)
        error = incremental.sampled_error(
            *(
                self.batches.model,
                self.images,
                self.boxes[self.numbers % len(self.boxes)],
                sample,
                self.fill,
                self.measured,
            ),
            values,
        )
        return values, stats["last"] | {"computed": int(computed.sum()) / computed.numel(), "error": error}

    def dense(self, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """The values of a target inside the network, whose activations are recorded in full forward passes."""
        parts = []
        boxes = self.boxes.to(self.images.device)
        for number in self.numbers.to(self.images.device).split(batch_size):
            covered = ops.occlude(self.images, boxes[number % len(boxes)], number // len(boxes), self.fill)
            parts += self.batches(self._recorded, covered, number)
            self.advance(len(number))
        alone = self.batches.reason
        stats = _dense_stats("the target is inside the network")
        return torch.cat(parts), stats | {"alone": alone, "batch_size": 1 if alone else batch_size}

    def _recorded(self, covered: Tensor, number: Tensor) -> Tensor:
        layers = self.selection.layers
        output, recorded = self.batches.watched(lambda images: targets.run(self.batches.model, images, layers), covered)
        return self.measured(output, number, recorded)


def _dense_stats(reason: str) -> dict[str, Any]:
    return {"path": "dense", "reason": reason}
