"""Gradients of targets for the input, computed with the least work that gives the same results.

A pass for targets inside the network ends at their layers. Single units are computed only on their receptive field, see
:mod:`fastviz.engine.gradients.unit_gradients`, and on a CPU convolutions run in channels_last memory, where that is
faster, and by the methods of :mod:`fastviz.execution.fast_conv.memory_format`. None of these changes results beyond
rounding. But if rounding moves a rectifier's input across zero, its gradient changes, as it can with another batch
size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastviz import ops, targets
from fastviz._util.batch_size import BATCH, images_at_once
from fastviz.engine.gradients import unit_gradients
from fastviz.execution.batches import Batches
from fastviz.execution.compiled import eager, has_compiled_parts
from fastviz.execution.evaluation_mode import frozen_model
from fastviz.execution.fast_conv.memory_format import fast_convolutions, in_fast_order
from fastviz.execution.inputs import require_gradients
from fastviz.execution.precision import Precision, checked_precision, map_dtype, reduced_precision, widened
from fastviz.execution.rectifiers import rectifier_rule
from fastviz.targets.selection import Selection

__all__ = ["check_options", "input_gradients", "passes", "predicted", "with_predicted"]

_IMAGES_OF_CROPS = 8
"""Crops run together until they fill this many images, or as many as were given."""

Result = TypeVar("Result")


def input_gradients(
    model: nn.Module,
    x: Tensor,
    selection: Selection,
    *,
    rule: ops.Rule | None = None,
    batch_size: int | None = None,
    precision: Precision = "model",
    stacklevel: int = 2,
) -> Tensor:
    """Gradient of ``selection`` for the input ``x``: [N, C, H, W], or [N, T, C, H, W] for several targets per sample.

    The model runs in evaluation mode; gradients of parameters are not computed.

    Args:
        model, x: as :func:`fastviz.execution.inputs.input_batch` checks them.
        selection: from :func:`fastviz.targets.resolve`.
        rule: a backward rule of :func:`fastviz.execution.rectifiers.rectifier_rule`.
        batch_size: images in a pass, which bounds the memory; None is :data:`fastviz._util.batch_size.BATCH`.
        precision: see :data:`fastviz.execution.precision.Precision`.
        stacklevel: for the warning about rectifiers, counted from the caller of this function.
    """
    check_options(batch_size, precision)
    require_gradients(model)
    if not len(x):
        return selection.no_values(x, x.shape[1:])
    if rule or selection.layers:
        model = eager(model)
    # five functions lie on the stack between here and the warning
    work = _Work(model, rule, precision, stacklevel + 5)
    with frozen_model(model):
        found = work.of_units(x, selection, batch_size)
        return work.of_images(x, selection, batch_size) if found is None else found


def check_options(batch_size: int | None, precision: str) -> None:
    """Check that ``batch_size`` is a number of images and ``precision`` a known word."""
    images_at_once(batch_size)
    checked_precision(precision)


def predicted(model: nn.Module, x: Tensor, batch_size: int | None = None, precision: Precision = "model") -> Tensor:
    """Predicted classes, int64 [N], of the images ``x``; arguments as in :func:`input_gradients`."""

    batches = Batches(model)

    def compute(batch: Tensor) -> Tensor:
        with torch.no_grad(), reduced_precision(batch, precision):
            return targets.predicted(batches.run_model(batch.clone()))

    run = in_fast_order(model, precision, compute)
    with frozen_model(model):
        return torch.cat([each for part in x.split(images_at_once(batch_size)) for each in batches(run, part)])


def with_predicted(
    model: nn.Module,
    selection: Selection,
    x: Tensor,
    batch_size: int | None = None,
    precision: Precision = "model",
) -> Selection:
    """``selection`` with the predicted classes of the images ``x`` filled in where it needs them."""
    if not selection.predicts or not len(x):
        return selection
    return selection.with_predicted(predicted(model, x, batch_size, precision))


def passes(
    batches: Batches,
    x: Tensor,
    selection: Selection,
    batch_size: int | None,
    run: Callable[[Tensor, Selection], Result],
) -> list[Result]:
    """The results of ``run`` for ``x`` and its targets in batches of ``batch_size`` images, in order.

    Images run one at a time if the model may mix them; ``run`` must let ``batches`` watch its passes.
    """
    found: list[Result] = []
    for numbers in torch.arange(len(x)).split(images_at_once(batch_size)):
        part = x[int(numbers[0]) : int(numbers[-1]) + 1]
        found += batches(
            lambda images, at: run(images, selection if len(at) == len(x) else selection.for_samples(at, len(x))),
            *(part, numbers),
        )
    return found


class _Work:
    """Computes the gradients of one call, in passes over batches of images or of crops."""

    def __init__(self, model: nn.Module, rule: ops.Rule | None, precision: Precision, stacklevel: int) -> None:
        self.model, self.rule, self.precision = model, rule, precision
        self.stacklevel: int | None = stacklevel
        self._is_compiled = has_compiled_parts(model)
        self._batches = Batches(model)
        self._run = in_fast_order(model, precision, self._pass)

    def of_images(self, x: Tensor, selection: Selection, batch_size: int | None) -> Tensor:
        """The gradients for whole images, ``batch_size`` in a pass."""
        calls = None
        if not selection.reads_output and x.dim() == 4:
            calls = unit_gradients.calls_of_layers(self.model, selection.layers, _size(x), channels=x.shape[1])
        if self.stacklevel is not None:
            self.stacklevel += 4  # the number of functions between this one and the pass
        found = passes(self._batches, x, selection, batch_size, lambda part, chosen: self._run(part, chosen, calls))
        return found[0] if len(found) == 1 else torch.cat(found)

    def of_units(self, x: Tensor, selection: Selection, batch_size: int | None) -> Tensor | None:
        """The gradients of single units on crops; None if that is impossible, or more work."""
        units = selection.objectives
        if x.dim() != 4 or not all(unit.is_unit for unit in units):
            return None
        size, channels = _size(x), x.shape[1]
        result = x.new_zeros((len(x), len(units), *x.shape[1:]), dtype=map_dtype(x.dtype))
        try:
            jobs = [_Units(self.model, name, units, x) for name in selection.layers]
        except unit_gradients.NoCrop:
            return None
        # A backward pass costs as much as a forward pass. Without crops: one forward, and one backward for each target.
        if 2 * sum(job.pixels for job in jobs) >= len(x) * (1 + len(units)) * size[0] * size[1]:
            return None
        images = batch_size or max(min(len(x), BATCH), _IMAGES_OF_CROPS)
        for job in jobs:
            calls = unit_gradients.calls_of_layers(self.model, [job.layer], size, channels=channels)
            for (height, width), numbers in job.crops.groups().items():
                at_once = max(1, images * size[0] * size[1] // (height * width))
                for start in range(0, len(numbers), at_once):
                    chosen = numbers[start : start + at_once]
                    gradients = self._run(job.cut(x, chosen), job.selection(chosen), calls)
                    job.paste(gradients, chosen, result)
        return result if selection.several else result[:, 0]

    def _pass(self, x: Tensor, selection: Selection, calls: Mapping[str, int] | None) -> Tensor:
        """The gradients of one batch, from one forward pass and one backward pass for each target."""
        if selection.several and self._is_compiled:
            # Compiled code may free its memory in a backward pass, so there cannot be a second one.
            return torch.stack([self._pass(x, target, calls) for target in selection.split_targets()], dim=1)
        rule = self.rule
        with (
            fast_convolutions(self.model, len(x)),
            rectifier_rule(rule, model=self.model) if rule else nullcontext() as intercepted,
        ):
            leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            with reduced_precision(x, self.precision):
                # The copy is for models that modify their input in place.
                output, layers = targets.run(
                    self.model, leaf.clone(), selection.layers, calls=calls, batches=self._batches
                )
            output, layers = widened(output, layers, x.dtype, self.precision)
            values = selection.values(output, layers)
            selection.missing(output)  # warns
            if intercepted is not None and values.requires_grad and self.stacklevel is not None:
                intercepted.check(values, stacklevel=self.stacklevel)
                self.stacklevel = None  # one warning per call
            return targets.gradients(values, {"x": leaf})[0].contiguous()


class _Units:
    """The target units of one layer in a call, each with its image and its crop."""

    def __init__(self, model: nn.Module, layer: str, units: Sequence[targets.Objective], x: Tensor) -> None:
        self.layer, self.model = layer, model
        size, channels = _size(x), x.shape[1]
        shape = unit_gradients.map_shape(model, layer, size, channels=channels)
        self.columns = [column for column, unit in enumerate(units) if unit.layers == (layer,)]
        self.images: list[tuple[int, int]] = []  # indices of the image and the target
        self.channels: list[int] = []
        positions: list[tuple[int, int]] = []
        if len(shape) != 3:
            raise unit_gradients.NoCrop(f"layer {layer!r} has no maps")
        for column in self.columns:
            channel, row, line = (_listed(at, len(x)) for at in units[column].places((len(x), *shape)))
            self.images += [(number, column) for number in range(len(x))]
            self.channels += channel
            positions += zip(row, line, strict=True)
        self.crops = unit_gradients.unit_crops(model, layer, positions, size, channels=channels)

    @property
    def pixels(self) -> int:
        """The total number of pixels of all crops."""
        return sum((bottom - top) * (right - left) for top, left, bottom, right in self.crops.boxes)

    def cut(self, x: Tensor, chosen: list[int]) -> Tensor:
        """The crops with these indices, of one size, as a batch."""
        parts = []
        for number in chosen:
            top, left, bottom, right = self.crops.boxes[number]
            parts.append(x[self.images[number][0], :, top:bottom, left:right])
        return torch.stack(parts)

    def selection(self, chosen: list[int]) -> Selection:
        """The unit of each of these crops."""
        channel, rows, columns = (
            torch.tensor(values)
            for values in (
                [self.channels[number] for number in chosen],
                [self.crops.positions[number][0] for number in chosen],
                [self.crops.positions[number][1] for number in chosen],
            )
        )
        return targets.resolve(targets.neuron(self.layer, channel, (rows, columns)), self.model)

    def paste(self, gradients: Tensor, chosen: list[int], result: Tensor) -> None:
        """Write the gradients of these crops to their place in ``result`` [N, T, C, H, W]."""
        for number, gradient in zip(chosen, gradients, strict=True):
            top, left, bottom, right = self.crops.boxes[number]
            result[(*self.images[number], slice(None), slice(top, bottom), slice(left, right))] = gradient


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _listed(index: targets.Index, samples: int) -> list[int]:
    return [index] * samples if isinstance(index, int) else index.tolist()
