"""A sweep's checked arguments, its collected values, and runs of the model itself on covered images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastviz import ops
from fastviz._util import checks
from fastviz._util.memory import LARGEST_KEPT, is_out_of_memory
from fastviz._util.modules import every_module
from fastviz.engine.incremental.work import known
from fastviz.execution import exported
from fastviz.execution.batches import Batches
from fastviz.execution.fast_conv.memory_format import convolution_weights, in_fast_order
from fastviz.execution.full_precision import full_float32
from fastviz.execution.inputs import input_batch, output_of

__all__ = [
    "Evaluate",
    "Job",
    "even_batches",
    "in_batches",
    "in_whole_order",
    "new_job",
    "sampled_error",
    "whole_passes",
]

Evaluate = Callable[[Any, Tensor], Tensor]
Result = TypeVar("Result")

_CHECKED = 16
"""Windows that approximate modes recompute exactly."""

_BATCH = {"cpu": 8, "cuda": 256}
"""The default number of images in a pass of the model itself."""

_PIXELS, _LIGHT_PIXELS, _MOST = 14 * 128 * 128, 14 * 224 * 224, 32
"""On a CPU, batches of small images are larger: up to this many pixels and images. Each call then has enough work to
outweigh its overhead, and the maps still fit the caches."""

_LIGHT_WEIGHTS = 1_500_000
"""Networks with depthwise convolutions and fewer weights than this, such as a ShuffleNet or the small MobileNets, have
so little work per pixel that calls outweigh it in larger images too. Others, such as an ESE-VoVNet, lose more by the
larger maps of such batches."""


_VOXELS = {"cpu": 1 << 20, "cuda": 1 << 23}
"""The default number of volumes in a pass."""


_MANY_WEIGHTS, _MANY_PIXELS = 12_000_000, 400_000
"""Below this many pixels, SelecSLS-42 (many weights on small maps) gains nothing from channels_last; ResNet-18 does."""


def whole_passes(model: nn.Module, images: Tensor) -> int:
    """The default batch size for ``images`` [N, C, H, W] and a ``model`` that runs without steps."""
    least = _BATCH[images.device.type]
    if images.dim() == 5:  # the maps of a volume take hundreds of MB
        return max(1, min(least, _VOXELS[images.device.type] // max(1, images.shape[2:].numel())))
    if images.device.type != "cpu":
        return least
    light = convolution_weights(model) < _LIGHT_WEIGHTS and any(map(_is_depthwise, every_module(model)))
    most = min(_MOST, (_LIGHT_PIXELS if light else _PIXELS) // max(1, images.shape[2:].numel()))
    work = known(model, images)
    if work is not None and work.largest * least <= LARGEST_KEPT:  # larger maps cost more than larger batches save
        most = min(most, int(LARGEST_KEPT / max(1.0, work.largest)))
    return max(least, most)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def even_batches(count: int, batch_size: int) -> int:
    """The batch size with which ``count`` images split into equally large batches, as few as possible."""
    return math.ceil(count / max(1, math.ceil(count / batch_size)))


def in_whole_order(model: nn.Module, pixels: int, run: Callable[[Tensor], Result]) -> Callable[[Tensor], Result]:
    """``run`` on batches of this many pixels in the memory order in which the whole ``model`` is faster.

    Another order requires copies of the weights, which must pay.
    """
    weights = convolution_weights(model)
    if weights >= _MANY_WEIGHTS and pixels < _MANY_PIXELS:
        return run
    return in_fast_order(model, "model", run, None, weights)


@dataclass
class Job:
    """One sweep.

    Attributes:
        model: the network, which the caller has put into evaluation mode.
        images: [N, C, H, W], or signals or volumes.
        boxes: int64 [P, 2 · axes] on the CPU, inside the image: starts along each axis, then stops.
        image: int64 [P], on the images' device.
        fill: a number, [C] or [1 or N, C, H, W].
        evaluate: computes the values to keep from an output.
        advance: called with the number of finished windows.
        stats: see :class:`fastviz.engine.incremental.Sweep`.
        batches: runs the model on batches, or on one image at a time if it may mix them.
        values: [P, ...], the values so far; None before the first.
        clean: the model's output for the unchanged images; None if it is not one known value.
        done: how many of the first windows are already computed.
    """

    model: nn.Module
    images: Tensor
    boxes: Tensor
    image: Tensor
    fill: float | Tensor
    evaluate: Evaluate
    advance: Callable[[int], object]
    stats: dict[str, Any]
    batches: Batches
    values: Tensor | None = None
    clean: Any = None
    done: int = 0

    @cached_property
    def boxes_by_images(self) -> Tensor:
        """The boxes on the images' device, copied there once."""
        return self.boxes.to(self.images.device)

    @property
    def windows(self) -> Tensor:
        """The numbers of the windows to be done, int64."""
        return torch.arange(self.done, len(self.boxes), device=self.images.device)

    def begin(self, outputs: Tensor) -> None:
        """Store the ``outputs`` of the first windows from an earlier pass."""
        self.put(outputs, torch.arange(len(outputs), device=self.images.device))
        self.done = len(outputs)
        self.stats.update(batch_size=len(outputs), batches=1)
        self.advance(len(outputs))

    def put(self, output: Any, windows: Tensor) -> None:
        """Store the values that ``evaluate`` computes from the ``output`` for ``windows``."""
        kept = self.evaluate(output, windows)
        if self.values is None:
            self.values = kept.new_empty(len(self.boxes), *kept.shape[1:])
        self.values[windows] = kept

    def all_values(self) -> Tensor:
        """All values; without windows, the result of ``evaluate`` for none."""
        if self.values is None:
            return self.evaluate(output_of(self.model, self.images[:1].clone())[:0], self.windows)
        return self.values

    def run_model(self, windows: Tensor, batch_size: int) -> None:
        """The model itself on images covered by ``windows``."""
        if not len(windows):
            return
        boxes = self.boxes_by_images

        def run(part: Tensor) -> None:
            covered = ops.occlude(self.images, boxes[part], self.image[part], self.fill)
            for output, numbers in self.batches(lambda images, at: (passed(images), at), covered, part):
                self.put(output, numbers)
            self.advance(len(part))

        even = even_batches(len(windows), batch_size)
        passed = in_whole_order(self.model, even * self.images.shape[2:].numel(), self.batches.run_model)
        in_batches(windows, 1 if self.batches.reason else even, self.stats, run)
        if self.batches.reason:
            self.stats.update(alone=self.batches.reason, batch_size=1)

    def error(self, values: Tensor) -> dict[str, float]:
        """Differences of ``values`` from the model itself for some windows, the same in each call."""
        chosen = torch.randperm(len(self.boxes), generator=torch.Generator().manual_seed(0))[:_CHECKED]
        windows = chosen.to(self.images.device)
        exact = replace(self, values=None, stats=dict(self.stats), advance=lambda done: None, done=0)
        exact.run_model(windows, _CHECKED)
        difference = (exact.all_values()[windows] - values[windows]).abs().double()
        if not difference.numel():
            return {"windows": 0, "largest": 0.0, "mean": 0.0}
        return {"windows": len(windows), "largest": float(difference.max()), "mean": float(difference.mean())}


def sampled_error(
    model: nn.Module,
    images: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    fill: float | Tensor,
    evaluate: Evaluate,
    values: Tensor,
) -> dict[str, float]:
    """The error of the ``values`` [P, ...] of some windows, compared with the model itself.

    The arguments are those of :func:`fastviz.engine.incremental.sweep`; the caller has put the model into evaluation
    mode.

    Returns:
        ``windows``: how many random windows were recomputed (with a fixed seed); ``largest`` and ``mean`` absolute
            difference.
    """
    job = new_job(model, images, boxes, image_index, fill, evaluate, lambda windows: None)
    with torch.no_grad(), full_float32(job.images.device):
        return job.error(values)


def in_batches(windows: Tensor, size: int, stats: dict[str, Any], run: Callable[[Tensor], object]) -> None:
    """``run`` over ``windows`` in batches of ``size``; a batch for which memory runs out is halved."""
    begin = 0
    while begin < len(windows):
        part = windows[begin : begin + size]
        stats["batch_size"] = max(stats["batch_size"], len(part))
        try:
            run(part)
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            size = len(part) // 2
            stats["retries"] += 1
        else:
            begin += len(part)
            stats["batches"] += 1


def new_job(
    model: object, images: object, boxes: object, image_index: object, fill: object, evaluate: Evaluate | None,
    advance: Callable[[int], object], batches: Batches | None = None,
) -> Job:  # fmt: skip
    """The arguments of :func:`fastviz.engine.incremental.sweep`, checked."""
    network = exported.of_any_batch(checks.module(model))
    batch = input_batch(network, images, "images", axes=(1, 2, 3)).detach()
    size = torch.tensor(batch.shape[2:])
    windows = checks.tensor(boxes, "boxes", dims=(2,), layout=f"[P, {2 * len(size)}]", floating=False)
    _integers(windows, "boxes")
    if windows.shape[1] != 2 * len(size):
        raise ValueError(f"boxes should have shape [P, {2 * len(size)}], got {list(windows.shape)}")
    image = _image_index(image_index, len(windows), batch)
    if not isinstance(fill, Tensor):
        if isinstance(fill, bool) or not isinstance(fill, (int, float)):
            raise TypeError(f"fill should be a number or a tensor, got {type(fill).__name__}")
        fill = float(fill)
    # the operator's own checks, on no window at all
    ops.occlude(batch, windows[:0].to(batch.device), image[:0], fill)
    inside = torch.minimum(windows.long().cpu().clamp(min=0), size.repeat(2))
    stats: dict[str, Any] = {
        "path": "incremental", "reason": "", "windows": len(windows), "batch_size": 0, "batches": 0, "retries": 0,
        "alone": "", "flops": None, "dense_flops": None, "predicted_gain": 1.0, "prepare_seconds": 0.0,
        "dense_seconds": None,
    }  # fmt: skip
    keep = evaluate or (lambda output, windows: output)
    return Job(network, batch, inside, image, fill, keep, advance, stats, batches or Batches(network))


def _image_index(value: object, windows: int, images: Tensor) -> Tensor:
    if value is None:
        if len(images) != 1 and windows:
            raise ValueError(f"image_index is needed for {len(images)} images, got None")
        return torch.zeros(windows, dtype=torch.int64, device=images.device)
    index = checks.tensor(value, "image_index", dims=(1,), layout="[P]", floating=False)
    _integers(index, "image_index")
    if len(index) != windows:
        raise ValueError(f"image_index should have one entry for each of {windows} boxes, got {len(index)}")
    if windows and not 0 <= int(index.min()) <= int(index.max()) < len(images):
        raise ValueError(
            f"image_index should be from 0 to {len(images) - 1}, got {int(index.min())} to {int(index.max())}"
        )
    return index.to(images.device).long()


def _integers(value: Tensor, argument: str) -> None:
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{argument} should be a tensor of integers, got {value.dtype}")
