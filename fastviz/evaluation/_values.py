"""What measures read off a network: one value an image, the probability of its class unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz._util import checks
from fastviz.engine.incremental.passes import outputs_of_images
from fastviz.execution.inputs import input_batch
from fastviz.execution.model_outputs import map_tensors
from fastviz.execution.precision import as_map
from fastviz.targets.selection import Selection, Target

__all__ = ["Reading", "Value", "reading"]

Value = Literal["probability", "target"]
"""What is measured: the probability of the target's class (of a target that is no class: the target itself), or the
target itself, which for a class is its score before softmax."""


@dataclass(frozen=True, eq=False)
class Reading:
    """The value of each image of a batch, for any changed copies of them.

    Attributes:
        model: the network.
        images: [N, C, H, W], as they are.
        selection: what is measured; the predicted classes are those of the images as they are.
        clean: [N], its value for them.
    """

    model: nn.Module
    images: Tensor
    selection: Selection
    clean: Tensor

    def of(self, output: Any, image: Tensor) -> Tensor:
        """Values [B] in the model's ``output`` for copies of the images of these numbers, int64 [B]."""
        return self.selection.for_samples(image, len(self.images)).values(_wide(output), {})


def reading(model: nn.Module, x: object, target: Target, value: Value, batch_size: int | None) -> Reading:
    """``target`` for the images ``x``, from one pass over them.

    Raises:
        TypeError, ValueError: as :func:`fastviz.saliency`; several targets a sample; a target inside the network.
    """
    images = input_batch(model, x).detach()
    checks.one_of(value, "value", ("probability", "target"))
    selection = targets.resolve(target, model)
    if selection.several:
        raise ValueError(f"target should be one a sample for a measure, got {selection.columns}")
    if selection.layers:
        raise ValueError(
            f"target should be read off the model's output for a measure, got one about {selection.layers[0]!r}"
        )
    (objective,) = selection.objectives
    if value == "probability":
        selection = Selection((objective.as_probability() or objective,), False, None)
    predicted: list[Tensor] = []

    def evaluate(output: Any, number: Tensor) -> Tensor:
        if not len(number):  # no images: the output is that of a black one
            return selection.no_values(_wide(images))
        if selection.predicts:
            predicted.append(targets.predicted(output))
        return selection.for_samples(number, len(images)).values(_wide(output), {})

    clean = outputs_of_images(
        model, lambda number: images[number], len(images), evaluate, like=images, batch_size=batch_size
    )
    settled = selection.with_predicted(torch.cat(predicted)) if predicted else selection
    return Reading(model, images, settled, clean)


def _wide(output: Any) -> Any:
    """An output in float32 at least: probabilities in bfloat16 would have two digits."""

    def wide(value: Tensor) -> Tensor:
        return as_map(value) if value.is_floating_point() else value

    return map_tensors(wide, output)
