"""Runs a model on many whole images, by its packed and fused steps if preparing them is worthwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastviz.engine.incremental.convolution import in_best_order
from fastviz.engine.incremental.execute import run_whole
from fastviz.engine.incremental.job import in_whole_order, whole_passes
from fastviz.engine.incremental.network import Network, kept, network
from fastviz.engine.incremental.work import counted, known
from fastviz.execution.batches import Batches
from fastviz.graph.model_graph import NotTraceable

__all__ = ["WholeImages"]

_LEAST_WORK = 3e11
"""The total operations of all images below which a model is not traced for them."""

_NEAR = {torch.float32: 1e-4, torch.float64: 1e-9}
"""The allowed difference of steps from the model, as a fraction of its largest output; other dtypes use no steps."""


class WholeImages:
    """Runs a model on many images of one size, in evaluation mode and without gradients.

    Args:
        model: any module; not changed.
        image: [1, C, H, W], one of the images, or a similar one.
        count: the number of images; a model is only traced for enough of them.

    Attributes:
        output: the model's output for ``image``.
        batch_size: the default number of images in a pass.
        stepwise: whether the steps of a trace run instead of the model.
    """

    def __init__(self, model: nn.Module, image: Tensor, count: int) -> None:
        self._batches = Batches(model)
        with counted(model, image):
            self.output = self._batches.run_model(image.clone())
        self.batch_size = whole_passes(model, image)
        self._steps = self._traced(model, image, count)
        pixels = self.batch_size * image.shape[2:].numel()
        self._run: Callable[[Tensor], Any] = in_whole_order(model, pixels, self._batches.run_model)

    @property
    def stepwise(self) -> bool:
        """See the class."""
        return self._steps is not None

    def __call__(self, images: Tensor) -> list[Any]:
        """The outputs for the ``images``: one for all of them, or one each if the model may mix them."""
        if self._steps is not None:
            steps = self._steps.steps
            return [run_whole(steps, {steps[0]: in_best_order(images)})[0]]
        return self._batches(self._run, images)

    def _traced(self, model: nn.Module, image: Tensor, count: int) -> Network | None:
        """The steps, if they are worthwhile and equal the model."""
        expected, near = self.output, _NEAR.get(image.dtype)
        if near is None or not isinstance(expected, Tensor) or not bool(expected.isfinite().all()):
            return None
        try:
            found = kept(model, image)
            if found is None:
                work = known(model, image)
                if work is None or work.operations * count < _LEAST_WORK:
                    return None
                found = network(model, image)
        except NotTraceable:
            return None
        for again in (False, True):
            if again:  # steps kept from an earlier call may be outdated
                found = network(model, image, rebuild=True)
            output, _ = run_whole(found.steps, {found.steps[0]: in_best_order(image)})
            if output.shape == expected.shape:
                largest = float(expected.abs().max())
                if float((output - expected).abs().max()) <= near * (largest or 1.0):
                    return found
        return None
