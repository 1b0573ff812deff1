"""The value that a measure reads from a network for each image: by default the probability of its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz.engine.incremental.passes import outputs_of_images
from fastviz.evaluation._explain import single_selection
from fastviz.execution.inputs import input_batch
from fastviz.execution.model_outputs import map_tensors
from fastviz.execution.precision import as_map
from fastviz.targets.selection import Selection, Target

__all__ = ["Reading", "Value", "reading"]

Value = Literal["probability", "target"]
"""The measured value: the probability of the target's class (or the target itself if it is not a class), or the target
itself, which for a class is its score before softmax."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Reads the values of a batch of images and of changed copies of them.

    Attributes:
        model: the network.
        images: [N, C, H, W], unchanged.
        selection: what is measured; predicted classes are those of the unchanged images.
        clean: [N], the values of the unchanged images.
    """

    model: nn.Module
    images: Tensor
    selection: Selection
    clean: Tensor

    def of(self, output: Any, image: Tensor) -> Tensor:
        """Values [B] in the model's ``output`` for copies of the images with these indices, int64 [B]."""
        return self.selection.for_samples(image, len(self.images)).values(_wide(output), {})


def reading(model: nn.Module, x: object, target: Target, value: Value, batch_size: int | None) -> Reading:
    """The :class:`Reading` of ``target`` for the images ``x``, from one pass over them.

    Raises:
        TypeError, ValueError: as :func:`fastviz.saliency`; several targets per sample; a target inside the network.
    """
    images = input_batch(model, x).detach()
    checks.one_of(value, "value", ("probability", "target"))
    selection = single_selection(model, target)
    if selection.layers:
        raise ValueError(
            f"target should be read off the model's output for a measure, got one about {selection.layers[0]!r}"
        )
    (objective,) = selection.objectives
    if value == "probability":
        selection = Selection((objective.as_probability() or objective,), False, None)
    predicted: list[Tensor] = []

    def evaluate(output: Any, number: Tensor) -> Tensor:
        if not len(number):  # without images the output is that of a black image
            return selection.no_values(_wide(images))
        if selection.predicts:
            predicted.append(targets.predicted(output))
        return selection.for_samples(number, len(images)).values(_wide(output), {})

    clean = outputs_of_images(
        model, lambda number: images[number], len(images), evaluate, like=images, batch_size=batch_size
    )
    final = selection.with_predicted(torch.cat(predicted)) if predicted else selection
    return Reading(model, images, final, clean)


def _wide(output: Any) -> Any:
    """An output in at least float32, because probabilities in bfloat16 have only two digits."""

    def wide(value: Tensor) -> Tensor:
        return as_map(value) if value.is_floating_point() else value

    return map_tensors(wide, output)
