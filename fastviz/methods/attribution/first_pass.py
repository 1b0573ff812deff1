"""The first pass of a sweep: the model on the unchanged images, and in the same batch on the first windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastviz import ops, targets
from fastviz._util.memory import is_out_of_memory
from fastviz.engine import incremental
from fastviz.engine.incremental import worth
from fastviz.execution.batches import Batches

__all__ = ["FirstPass", "first_pass"]


@dataclass(frozen=True, eq=False)
class FirstPass:
    """The outputs of the model for the unchanged images.

    Attributes:
        selection: what is measured, with predicted classes filled in.
        values: the selection's values for the images, [N] or [N, T].
        whole: the output for all images; None if it is not a tensor.
        example: the output for the first image, of any type.
        missing: bool [N] or [N, T], which targets are missing; None if none is.
        begun: the outputs for the first windows; None if they are not computed yet.
    """

    selection: targets.Selection
    values: Tensor
    whole: Tensor | None
    example: object
    missing: Tensor | None
    begun: Tensor | None = None


def first_pass(
    batches: Batches,
    images: Tensor,
    selection: targets.Selection,
    boxes: Tensor,
    fill: float | Tensor,
    options: dict[str, Any],
    batch_size: int,
) -> FirstPass:
    """Run the model on the images, together with the first windows if the sweep starts with full passes.

    If a trace exists, or turns out to be worthwhile, the images run alone, so that each call gives the same bits.

    Args:
        batches: of the model, which the caller has put into evaluation mode.
        images: [N, C, H, W], or signals or volumes.
        selection: what is measured.
        boxes: int64 [P, 2 · axes], on the CPU; each image is covered by each box. Empty if the images should run alone.
        fill: the ``fill`` of ``ops.occlude``.
        options: of the following sweep.
        batch_size: images in a pass, if the images run alone.
    """
    every, trace = boxes.repeat(len(images), 1), options["trace"]
    beside = worth.beside_clean(batches.model, images, every, options["batch_size"], trace) if len(boxes) else 0
    if beside:
        clean = torch.arange(len(images))
        number = torch.cat([clean, torch.arange(beside) // len(boxes)])
        windows = torch.cat([boxes.new_zeros(len(images), boxes.shape[1]), every[:beside]])  # empty boxes cover nothing
        output = _output_for_all(
            batches, ops.occlude(images, windows.to(images.device), number.to(images.device), fill)
        )
        if output is not None and (trace == "never" or worth.refusal(batches.model, images, every, beside)):
            return _from_output(output, selection, len(images))
    return _from_images(batches, images, selection, batch_size)


def _output_for_all(batches: Batches, images: Tensor) -> Tensor | None:
    """The model's output for all ``images``; None if it is not a tensor, or if memory is too small."""

    def passed(part: Tensor) -> object:
        with incremental.counted(batches.model, part):
            return targets.run(batches.model, part, argument="x")[0]

    def run(part: Tensor) -> object:
        return batches.watched(passed, part)

    try:
        pixels = len(images) * images.shape[2:].numel()
        found = batches(incremental.in_whole_order(batches.model, pixels, run), images)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    tensors = [each for each in found if isinstance(each, Tensor) and each.dim()]
    return torch.cat(tensors) if len(tensors) == len(found) else None


def _from_output(output: Tensor, selection: targets.Selection, count: int) -> FirstPass:
    """The result from the ``output`` for ``count`` images followed by windows."""
    clean, begun = output[:count], output[count:]
    known = selection.with_predicted(targets.predicted(clean)) if selection.predicts else selection
    part = known.for_samples(torch.arange(count, device=output.device), count)
    return FirstPass(known, part.values(clean, {}), clean, clean, part.missing(clean), begun)


def _from_images(batches: Batches, images: Tensor, selection: targets.Selection, batch_size: int) -> FirstPass:
    """The result from the images alone, in batches as large as memory allows."""
    values: list[Tensor] = []
    missing: list[Tensor | None] = []
    predicted: list[Tensor] = []
    outputs: list[object] = []

    def passed(batch: Tensor) -> tuple[object, targets.Activations]:
        with incremental.counted(batches.model, batch):
            return targets.run(batches.model, batch.clone(), selection.layers, argument="x")

    def measure(batch: Tensor, sample: Tensor) -> None:
        output, recorded = batches.watched(passed, batch)
        if selection.predicts:
            predicted.append(targets.predicted(output))
        part = selection.for_samples(sample, len(images))
        values.append(part.values(output, recorded))
        missing.append(part.missing(output))
        outputs.append(output if isinstance(output, Tensor) or not outputs else None)

    def run(sample: Tensor) -> None:
        batches(measure, images[sample], sample)

    counts = {"batch_size": 0, "batches": 0, "retries": 0}
    incremental.in_batches(torch.arange(len(images), device=images.device), batch_size, counts, run)
    known = selection.with_predicted(torch.cat(predicted)) if predicted else selection
    tensors = [each for each in outputs if isinstance(each, Tensor)]
    whole = torch.cat(tensors) if tensors and len(tensors) == len(outputs) else None
    found = torch.cat(values) if values else selection.no_values(images)
    gone = [
        torch.zeros(part.shape, dtype=torch.bool) if each is None else each
        for each, part in zip(missing, values, strict=True)
    ]
    absent = torch.cat(gone) if any(each is not None for each in missing) else None
    return FirstPass(known, found, whole, outputs[0] if outputs else None, absent)
