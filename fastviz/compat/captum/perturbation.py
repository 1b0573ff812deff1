"""captum's ``Occlusion`` and ``FeatureAblation``, computed by incremental sweeps."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastviz._util.progress import bar
from fastviz.compat.captum import _bases
from fastviz.compat.captum._fast_model import own
from fastviz.compat.captum._forward import formatted, one_mask_each
from fastviz.compat.captum._sweep import Job, LeftToCaptum, accepted
from fastviz.engine.incremental.window_grid import Grid
from fastviz.engine.masking.feature_boxes import Segments, segments

__all__ = ["FeatureAblation", "Occlusion"]

Tensors = Tensor | tuple[Tensor, ...]

_log = logging.getLogger("fastviz.compat.captum")


class Occlusion(_bases.Occlusion):
    """captum's ``Occlusion``: how much the target falls when a window of the input is covered.

    Arguments, results and errors are captum's. If the model is a module and the input is one batch of images
    [N, C, H, W], signals [N, C, L] or volumes [N, C, D, H, W], only what a window changes is recomputed
    (:func:`fastviz.engine.incremental.sweep`), for many windows at once, whatever ``perturbations_per_eval`` is. Other
    calls, and calls that are less work than preparing a model, are delegated to captum; the logger
    ``fastviz.compat.captum`` logs the reason at level DEBUG.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2)).eval()
    >>> Occlusion(model).attribute(torch.ones(1, 3, 4, 4), (3, 2, 2), strides=(3, 2, 2), target=1).shape
    torch.Size([1, 3, 4, 4])
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        sliding_window_shapes: Any,
        strides: Any = None,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
    ) -> Tensors:
        """The attributions, float32, of the shapes of the inputs: see captum's ``Occlusion.attribute``."""
        job: Job | None
        try:
            call = accepted(self, Occlusion, inputs, baselines, additional_forward_args, perturbations_per_eval)
            channels, grid = _windows(call.images, sliding_window_shapes, strides)
            windows = len(channels) * len(grid.boxes)
            job = call.job(target, grid.boxes[:1], windows)
        except LeftToCaptum as reason:
            _log.debug("Occlusion takes captum's own path: %s", reason)
            job = None
        if job is None:
            return own(_bases.Occlusion)(  # type: ignore[no-any-return]
                self,
                inputs,
                sliding_window_shapes,
                strides=strides,
                baselines=baselines,
                target=target,
                additional_forward_args=additional_forward_args,
                perturbations_per_eval=perturbations_per_eval,
                show_progress=show_progress,
            )
        with _progress(self, show_progress, windows, perturbations_per_eval, len(job.images)) as advance:
            maps = [_occluded(job, grid, each, advance) for each in channels]
        return formatted(inputs, (_over_channels(maps, channels, job.images.shape[1]).float(),))

    def _construct_ablated_input_across_tensors(self, inputs: tuple[Tensor, ...], *args: Any, **kwargs: Any) -> Any:
        # captum 0.9 makes some masks on torch's default device, which is wrong for inputs on a GPU.
        with torch.device(inputs[0].device):
            return super()._construct_ablated_input_across_tensors(inputs, *args, **kwargs)


class FeatureAblation(_bases.FeatureAblation):
    """captum's ``FeatureAblation``: how much the target falls when a feature of the input is replaced.

    Arguments, results and errors are captum's; see also :class:`Occlusion`. The mask defines features of any shape,
    such as rectangles, segments or channels, and may differ between images; without a mask every value is a feature.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2)).eval()
    >>> mask = torch.tensor([[0, 0, 1, 1]]).expand(1, 1, 4, 4)
    >>> FeatureAblation(model).attribute(torch.ones(1, 3, 4, 4), target=1, feature_mask=mask).shape
    torch.Size([1, 3, 4, 4])
    """

    @_bases.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> Tensors:
        """The attributions, of the shapes of the inputs: see captum's ``FeatureAblation.attribute``."""
        one_mask_each(inputs, feature_mask)
        job: Job | None
        try:
            if kwargs or getattr(self, "_min_examples_per_batch_grouped", None) is not None:
                raise LeftToCaptum("there are further options")
            call = accepted(self, FeatureAblation, inputs, baselines, additional_forward_args, perturbations_per_eval)
            parts = _parts(feature_mask, call.images)
            job = call.job(target, parts.layers[0].boxes[:1], parts.count)
            if len(parts.index) > 1 and job.clean.shape[1] > 1:
                raise LeftToCaptum("there is not one mask for each value of the output")
        except LeftToCaptum as reason:
            _log.debug("FeatureAblation takes captum's own path: %s", reason)
            job = None
        if job is None:
            return own(_bases.FeatureAblation)(  # type: ignore[no-any-return]
                self,
                inputs,
                baselines=baselines,
                target=target,
                additional_forward_args=additional_forward_args,
                feature_mask=feature_mask,
                perturbations_per_eval=perturbations_per_eval,
                show_progress=show_progress,
                **kwargs,
            )
        with _progress(self, show_progress, parts.count, perturbations_per_eval, len(job.images)) as advance:
            return formatted(inputs, (_ablated(job, parts, advance),))


# ---------------------------------------------------------------------------------------------------- occlusion


def _windows(images: Tensor, shapes: Any, strides: Any) -> tuple[list[tuple[int, int]], Grid]:
    """First and last channel of the windows, and their grid in the image, signal or volume."""
    window = shapes[0] if isinstance(shapes, tuple) and len(shapes) == 1 else shapes
    step = strides[0] if isinstance(strides, tuple) and len(strides) == 1 else strides
    step = 1 if step is None else step
    axes = images.dim() - 1
    steps = (step,) * axes if type(step) is int else step
    starts = []
    for size, length, stride in zip(images.shape[1:], _numbers(window, axes), _numbers(steps, axes), strict=True):
        if length > size or (stride > length and length < size):
            raise LeftToCaptum("a window or a stride is too large")
        starts.append(range(0, math.ceil((size - length) / stride) * stride + 1, stride))
    channels = window[0]
    grid = Grid(tuple(tuple(each) for each in starts[1:]), tuple(window[1:]), tuple(images.shape[2:]))
    return [(first, min(first + channels, images.shape[1])) for first in starts[0]], grid


def _numbers(numbers: Any, count: int) -> tuple[int, ...]:
    if not isinstance(numbers, tuple) or len(numbers) != count or not all(type(each) is int for each in numbers):
        raise LeftToCaptum("a window or a stride does not have a whole number for each dimension")
    if min(numbers) < 1:
        raise LeftToCaptum("a window or a stride is below 1")
    return numbers


def _occluded(job: Job, grid: Grid, channels: tuple[int, int], advance: Callable[[int], object]) -> Tensor:
    """[N · M, H, W]: the mean drop of each value over the windows that cover a pixel in these channels.

    The same for signals and volumes.
    """
    images, fill = job.images, job.fill
    first, last = channels
    if last - first < images.shape[1]:
        covered = images.clone()
        covered[:, first:last] = fill[:, first:last] if isinstance(fill, Tensor) else fill
        fill = covered
    N, windows = len(images), len(grid.boxes)
    sample = torch.arange(N, device=images.device).repeat_interleave(windows)
    values = job.values(grid.boxes.repeat(N, 1), sample, fill, advance)
    fall = job.clean[:, None] - values.reshape(N, windows, -1)
    return grid.spread(fall.mT.reshape(-1, *grid.shape))


def _over_channels(maps: list[Tensor], channels: list[tuple[int, int]], count: int) -> Tensor:
    """[N · M, C, H, W]: for each channel, the mean of the maps of the windows that cover it."""
    found = []
    for channel in range(count):
        covering = [each for each, (first, last) in zip(maps, channels, strict=True) if first <= channel < last]
        found.append(covering[0] if len(covering) == 1 else torch.stack(covering).mean(0))
    return torch.stack(found, dim=1)


# ----------------------------------------------------------------------------------------------------- ablation


def _parts(feature_mask: Any, images: Tensor) -> Segments:
    """The features of the mask, which has the images' shape or fewer dimensions."""
    shape = images.shape
    if images.dim() != 4:
        raise LeftToCaptum("the inputs are not images")
    mask = feature_mask[0] if isinstance(feature_mask, tuple) and len(feature_mask) == 1 else feature_mask
    if mask is None:
        mask = torch.arange(shape[1:].numel()).view(shape[1:])
    if not isinstance(mask, Tensor) or mask.dim() > 4:
        raise LeftToCaptum("the mask is not a tensor of the images' shape")
    wanted = (len(mask) if mask.dim() == 4 else 1, *shape[1:])
    if wanted[0] not in (1, len(images)) or any(
        size not in (1, other) for size, other in zip(mask.shape[::-1], wanted[::-1], strict=False)
    ):
        raise LeftToCaptum("the mask does not have the images' shape")
    parts = segments(mask.expand(wanted))
    if parts is None:
        raise LeftToCaptum("too many features overlap")
    return parts


def _ablated(job: Job, parts: Segments, advance: Callable[[int], object]) -> Tensor:
    """[N · M, C, H, W]: the drop of each value when the feature at a position is replaced."""
    images = job.images
    (N, M), device = job.clean.shape, images.device
    falls = job.clean.new_zeros(N, M, parts.count)
    for layer in parts.layers:
        fill = torch.where(layer.covered.to(device), job.fill, images)
        if len(parts.index) == 1:
            sample = torch.arange(N, device=device).repeat_interleave(len(layer.boxes))
            boxes, features = layer.boxes.repeat(N, 1), layer.features.repeat(N)
        else:
            sample, boxes, features = layer.masks.to(device), layer.boxes, layer.features
        values = job.values(boxes, sample, fill, advance)
        falls[sample, :, features.to(device)] = job.clean[sample] - values
    index = parts.index.to(device)
    if len(index) == 1:
        return falls.reshape(N * M, -1)[:, index[0]]
    return falls[:, 0].gather(1, index.flatten(1)).view(images.shape)


# ----------------------------------------------------------------------------------------------------- progress


@contextmanager
def _progress(
    attribution: Any, wanted: bool, windows: int, per_evaluation: int, images: int
) -> Iterator[Callable[[int], object]]:
    """captum's progress bar, which counts evaluations; yields a function that is called with finished windows."""
    if not wanted:
        yield lambda done: None
        return
    evaluations, text = math.ceil(windows / per_evaluation), f"{attribution.get_name()} attribution"
    finished = shown = 0

    def steps(done: int) -> int:
        nonlocal finished, shown
        finished += done
        before, shown = shown, min(evaluations, finished * evaluations // (windows * images))
        return shown - before

    if _bases.progress_bar is None:
        with bar(True, evaluations + 1, text=text) as advance:
            advance(1)
            yield lambda done: advance(steps(done))
        return
    captums = _bases.progress_bar(desc=text, total=evaluations + 1)
    try:
        captums.update(1)
        yield lambda done: captums.update(steps(done))
        captums.update(evaluations - shown)  # features that do not occur in an image are not evaluated
    finally:
        captums.close()
