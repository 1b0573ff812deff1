"""Occlusion: what happens to a target when a window of the image is covered, for windows all over the image.

Signals and volumes are covered in the same way, along their one axis or their three.
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
"""Images the network sees at once where nothing else is said; on a CPU as many as its caches hold."""


@dataclass(frozen=True, eq=False, repr=False)
class OcclusionMap(notebook.NotebookResult):
    """The result of :func:`occlusion`.

    Attributes:
        attribution: [N, H, W], ``baseline − score`` averaged over the windows that cover each pixel; of signals [N, L],
            of volumes [N, D, H, W].
        scores: [N, rows, columns], the target under each window, from top left to bottom right; of signals [N,
            windows], of volumes [N, slices, rows, columns].
        baseline: [N], the target of the image as it is.
        classes: int64, of the shape of the scores of one target, the class with the highest score under each window
            (the first of equal ones); None unless it was asked for.
        stats: how it was computed: ``path`` (``"incremental"``: only what a window changes was recomputed;
            ``"dense"``: whole forward passes), ``reason`` (why it is dense), ``windows`` (an image), ``evaluations``
            (images the network would see in whole passes), ``seconds``, in approximate modes ``error``, and what
            :func:`fastviz.engine.incremental.sweep` tells.

    With T targets per sample there is a dimension T after N in the first three.

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
        if self.scores.dim() - self.baseline.dim() != 2:  # curves and volumes are drawn elsewhere
            return []
        maps, values = self.attribution.flatten(0, -3), self.baseline.flatten().tolist()
        captions = (f"{number}: {notebook.words(baseline=value)}" for number, value in enumerate(values))
        return [(caption, notebook.signed(each)) for caption, each in zip(captions, maps, strict=True)]


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
    """How much the target falls when a window of the image is covered: large where the target comes from.

    Attribution of a pixel: the mean of S(x) − S(x with the window covered) over the windows that cover it. Zeiler,
    Fergus 2014, "Visualizing and Understanding Convolutional Networks", https://arxiv.org/abs/1311.2901; the windows
    and the mean are those of captum's ``Occlusion``. Windows begin at 0, stride, 2·stride, … until one reaches the
    border, which cuts it off if it sticks out; all channels are covered. Only what a window changes is recomputed,
    exactly, where the model allows it and there is enough work: see :func:`fastviz.engine.incremental.sweep`. Each
    window has the score of a pass of its own: nothing is shared between the images of a batch.

    Args:
        model: any module that maps ``x`` to scores [N, K] (or to anything, for targets inside the network).
        x: [N, C, H, W], floating-point, as the model takes it; N may be 0. Or signals [N, C, L], or volumes
            [N, C, D, H, W].
        target: what to measure; None is the predicted class of each unchanged image. See :data:`fastviz.Target`;
            ``class_probability(k)`` measures probabilities.
        window: height and width of the window, in pixels; one number for a square; None is a seventh of the image's
            sides, at least 1. Of volumes depth, height and width; of signals the length.
        stride: step between windows, at most their size, in pixels; None is half of the window, at least 1.
        centred: put a window on each of the pixels 0, stride, 2·stride, … instead, cut off at every border; with
            stride 1 ``scores`` is then a map [N, H, W] of the score with the window on each pixel.
        region: top, left, bottom, right of the part of the image that windows are put on, half-open, in pixels; the map
            is of that part alone; None is the whole image. Of signals start and stop; of volumes front, top, left,
            back, bottom and right.
        fill: what covers: a number, a value for each channel [C], an image [C, H, W], one per image [N, C, H, W] (or a
            signal or volume, one an input), ``"mean"`` (of each channel of each image) or ``"blur"`` (the image under a
            Gaussian whose standard deviation is half of the window).
        classes: tell which class wins under each window, too.
        precision: ``"bfloat16"`` computes in it; approximate.
        growth_cap: the longest side that the part of a map that a window changes may have, as a fraction of the map,
            above 0; what it changes beyond is left out; approximate.
        drill_down: the fraction, 0 to 1, of the grid that is computed window by window, where the target falls most;
            elsewhere every fourth window of every fourth row is, and the others are interpolated; approximate.
        memory: bytes that the sweep may hold at once; None is 1 GiB on the CPU and half of the free memory of a GPU.
        batch_size: windows the network sees at once; None is what fits into ``memory`` and runs fastest. A network that
            may mix the images of a batch gets one at a time all the same; ``stats["alone"]`` says why.
        trace: ``"auto"`` prepares a model for incremental sweeps, which takes up to seconds, where that pays in this
            call, or over many calls of the same model; ``"always"`` does it at once; ``"never"`` runs whole passes.
        progress: show a progress bar on a terminal.

    In approximate modes ``stats["error"]`` tells ``largest`` and ``mean`` absolute difference of the scores of
    ``windows`` windows, chosen at random (always the same ones), from those of the model itself.

    Returns:
        An :class:`OcclusionMap` with ``attribution`` [N, H, W] ([N, T, H, W] for T targets per sample), signed, in the
        units of the target, and the scores and figures behind it, on the device of ``x``.

    Raises:
        TypeError: ``model``, ``x``, ``target`` or another argument is of the wrong type; the model returns no tensor.
        ValueError: wrong shape or device of ``x`` or ``fill``; a window larger than the image; a stride larger than the
            window; a class, layer, channel or position that does not exist; an approximate mode for a target inside of
            the network; ``classes`` with ``drill_down``.

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
        covered = _Covered(batches, images, first, windows.boxes, covering, selection, advance, classes)
        values, stats = covered.values(windows.shape, baseline, drill_down, options, at_once)
        # [N * P] or [N * P, T] → [N, *grid] or [N, T, *grid]
        scores = values.reshape(len(images), *windows.shape, *baseline.shape[1:])
        if selection.several:
            scores = scores.movedim(-1, 1).contiguous()
        attribution = windows.spread(baseline[(..., *(None for _ in windows.shape))] - scores)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)  # else the seconds would be those of queueing the work
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
        raise ValueError("drill_down should be None for volumes: it goes over rows and columns of windows")
    if classes:
        raise ValueError("classes needs every window, drill_down leaves windows out; choose one of them")


def _options(
    precision: Precision, growth_cap: float | None, memory: int | None, batch_size: int | None, trace: str
) -> dict[str, Any]:
    """The options of a sweep, those checked that count where none is made, too."""
    for number, argument in ((batch_size, "batch_size"), (memory, "memory")):
        if number is not None:
            checks.whole_number(number, argument, minimum=1)
    checks.one_of(trace, "trace", ("auto", "always", "never"))
    return {
        **{"precision": checked_precision(precision), "growth_cap": growth_cap, "memory": memory},
        **{"batch_size": batch_size, "trace": trace},
    }


@dataclass(eq=False)
class _Covered:
    """Images under windows, each image under each; windows are counted image after image.

    Attributes:
        batches: of the model, in evaluation mode by the caller.
        images: [N, C, H, W], or signals or volumes.
        outputs: what the model gives for the images as they are.
        boxes: int64 [P, 2 · axes], on the CPU, where sweeps are planned.
        fill: as ``ops.occlude`` takes it.
        selection: what is measured, for the N images.
        advance: is told how many windows are done.
        classes: whether to note the class that wins under each window.
        winners: int64 [N * P], those; zeros where not asked for.
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
        """Of all windows, int64 [N * P], on the CPU."""
        return torch.arange(self.count)

    def values(
        self,
        shape: tuple[int, ...],
        baseline: Tensor,
        drill_down: float | None,
        options: dict[str, Any],
        batch_size: int,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The values under all windows, [N * P] or [N * P, T], and how they were computed."""
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
        """The selection's values for the model's ``output`` under the windows of these numbers, int64 [B]."""
        if self.classes:
            self.winners[number] = targets.predicted(output)
        sample = number // len(self.boxes)
        return self.selection.for_samples(sample, len(self.images)).values(output, recorded or {})

    def swept(self, number: Tensor, options: dict[str, Any], *, check: bool = True) -> tuple[Tensor, dict[str, Any]]:
        """The values under some windows, numbered on the CPU, recomputing only what a window changes."""
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
        """The values under all windows, coarse to fine."""
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
        """The values of a target inside of the network, whose activations a whole forward pass records."""
        parts = []
        boxes = self.boxes.to(self.images.device)
        for number in self.numbers.to(self.images.device).split(batch_size):
            covered = ops.occlude(self.images, boxes[number % len(boxes)], number // len(boxes), self.fill)
            parts += self.batches(self._recorded, covered, number)
            self.advance(len(number))
        alone = self.batches.reason
        stats = _dense_stats("the target is inside of the network")
        return torch.cat(parts), stats | {"alone": alone, "batch_size": 1 if alone else batch_size}

    def _recorded(self, covered: Tensor, number: Tensor) -> Tensor:
        layers = self.selection.layers
        output, recorded = self.batches.watched(lambda images: targets.run(self.batches.model, images, layers), covered)
        return self.measured(output, number, recorded)


def _dense_stats(reason: str) -> dict[str, Any]:
    return {"path": "dense", "reason": reason}
