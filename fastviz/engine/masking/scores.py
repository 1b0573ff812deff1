"""The target's values for many pictures made from a few images, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastviz import targets
from fastviz.execution.batches import Batches
from fastviz.execution.fast_conv.memory_format import fast_convolutions, in_fast_order
from fastviz.targets.selection import Selection

__all__ = ["AT_ONCE", "Scores"]

AT_ONCE = {"cpu": 16, "cuda": 128}
"""The default number of pictures in a pass."""


class Scores:
    """The target's values for pictures made from images, during one call of a method.

    Use it with the model in evaluation mode and gradients off.

    Attributes:
        images: [N, C, H, W].
        selection: the targets, with the images' predicted classes filled in.
        clean: [N] or [N, T], their values for the unchanged images.
        at_once: pictures in a pass.
    """

    def __init__(self, model: nn.Module, images: Tensor, selection: Selection, batch_size: int | None) -> None:
        self.model, self.images, self.selection = model, images.detach(), selection
        self.at_once = batch_size or AT_ONCE[images.device.type]
        self.batches = Batches(model)
        self._run = in_fast_order(model, "model", self._pass)
        predicted: list[Tensor] = []
        clean: list[Tensor] = []

        def measure(part: Tensor, numbers: Tensor) -> None:
            output, recorded = self._run(part)
            if selection.predicts:
                predicted.append(targets.predicted(output))
            clean.append(selection.for_samples(numbers, len(images)).values(output, recorded))

        for at in torch.arange(len(images)).split(self.at_once) if len(images) else ():
            self.batches(measure, images[int(at[0]) : int(at[-1]) + 1], at)
        self.selection = selection.with_predicted(torch.cat(predicted)) if predicted else selection
        self.clean = torch.cat(clean) if clean else selection.no_values(images)

    def of(self, pictures: Tensor, numbers: Tensor) -> Tensor:
        """Values [B], or [B, T], of ``pictures`` [B, C, H, W] made from the images ``numbers``, int64 [B]."""

        def values(part: Tensor, chosen: Tensor) -> Tensor:
            output, recorded = self._run(part)
            return self.selection.for_samples(chosen, len(self.images)).values(output, recorded)

        return torch.cat(self.batches(values, pictures, numbers))

    def composed(
        self,
        compose: Callable[[Tensor], Tensor],
        number: int,
        count: int,
        advance: Callable[[int], object] = lambda pictures: None,
    ) -> Tensor:
        """Values [P], or [P, T], of ``count`` pictures that ``compose`` makes from one image.

        ``compose`` gets the indices of some pictures, int64 [B], and returns them, [B, C, H, W].
        """
        found = []
        for at in torch.arange(count).split(self.at_once):
            found.append(self.of(compose(at), torch.full((len(at),), number)))
            advance(len(at))
        return torch.cat(found) if found else self.clean.new_zeros(0, *self.clean.shape[1:])

    def _pass(self, part: Tensor) -> tuple[object, targets.Activations]:
        """Output and activations. The copy is for models that modify their input in place."""
        with fast_convolutions(self.model, len(part)):
            return targets.run(self.model, part.clone(), self.selection.layers, batches=self.batches)
